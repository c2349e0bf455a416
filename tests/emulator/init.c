// The first process of the emulated machine: runs /tests on its serial line, without those of an
// emulated GPU, which would take most of the time and know no instruction sets, and switches it
// off.
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
    mount("devtmpfs", "/dev", "devtmpfs", 0, "");
    mount("proc", "/proc", "proc", 0, "");
    const int line = open("/dev/ttyS0", O_RDWR);
    for (int stream = 0; stream < 3; ++stream) dup2(line, stream);
    puts("STARTED");
    fflush(stdout);
    if (fork() == 0) {
        char* arguments[] = {"/tests", "-emulated_cuda", NULL};
        char* environment[] = {"LD_LIBRARY_PATH=/lib", NULL};
        execve(arguments[0], arguments, environment);
        perror("/tests");
        _exit(127);
    }
    int status = 0;
    wait(&status);
    printf("FINISHED %d\n", status);
    fflush(stdout);
    sleep(1);
    return reboot(RB_POWER_OFF);
}
