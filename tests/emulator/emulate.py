"""Run the C++ tests of the kernels on a processor that the machine lacks: AVX-512 and AMX.

The emulator is Bochs, the system a Linux kernel with nothing but the test binary. Everything is
fetched and built in a folder (two minutes, once); a run then takes some three minutes. Needs Debian
or a relative of it (``apt-get download``, ``dpkg-deb``), a C++ compiler and make.

    python tests/emulator/emulate.py build/emulator path/to/seqkernels_native_tests
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

import pycdlib

BOCHS = "http://deb.debian.org/debian/pool/main/b/bochs/bochs_3.0+dfsg.orig.tar.xz"
BOCHS_SHA256 = "78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b"
OPTIONS = """--enable-cpu-level=6 --enable-x86-64 --enable-avx --enable-evex --enable-amx
             --enable-all-optimizations --with-nogui --disable-docbook"""
# Linux lets a process use tiles only where the processor can withhold them (XFD). The emulator has
# no such thing: here it says so, and does nothing. Of the models it has, the one that this kernel
# starts on is made to show its tiles and its conversions to bfloat16. Where tiles are on, decoded
# instructions are kept 128 bytes from where those that are written over were looked for: a kernel
# that changed its own code went on with the old. Of two vectors converted to bfloat16 at once the
# second was read beyond its end.
PATCHES = {
    "cpu/icache.h": (("    if (line_mask > mask) break;\n", ""),),
    "cpu/avx/avx512_bf16.cc": (
        (
            "convert_ne_fp32_to_bfloat16(op1.vmm32u(n));",
            "convert_ne_fp32_to_bfloat16(op1.vmm32u(n - DWORD_ELEMENTS(len)));",
        ),
    ),
    "cpu/cpuid.cc": (
        (
            "      leaf->eax |= (1<<3);\n\n    // EBX[31:00]",
            "      leaf->eax |= (1<<3);\n    if (is_cpu_extension_supported(BX_ISA_AMX))\n"
            "      leaf->eax |= (1<<4);\n\n    // EBX[31:00]",
        ),
        (
            "      leaf->ecx = (cpu->ia32_xss_suppmask & (1 << subfunction)) != 0;\n",
            "      leaf->ecx = (cpu->ia32_xss_suppmask & (1 << subfunction)) != 0;\n"
            "      if (subfunction == 17) leaf->ecx |= 2;\n"
            "      if (subfunction == 18) leaf->ecx |= 2 | 4;\n",
        ),
    ),
    "cpu/cpudb/intel/corei7_skylake-x.cc": (
        (
            "    leaf->ecx = 0;\n    leaf->edx = 0;\n    break;\n  default:",
            "    leaf->ecx = 0;\n    leaf->edx = is_cpu_extension_supported(BX_ISA_AMX)"
            " ? (1u << 22 | 1u << 24) : 0;\n    leaf->eax = 1;\n    break;\n  case 1:\n"
            "    leaf->eax = is_cpu_extension_supported(BX_ISA_AVX512_BF16) ? 1u << 5 : 0;\n"
            "    leaf->ebx = leaf->ecx = leaf->edx = 0;\n    break;\n  default:",
        ),
    ),
}
MACHINE = """
cpu: model=corei7_skylake_x, count=1, ips=200000000, add_features="amx,amx_bf16,avx512bf16"
memory: guest=1024, host=1024
romimage: file={bochs}/bios/bios.bin-1.13.0
vgaromimage: file={bochs}/bios/vgabios-cirrus.bin-1.13.0
vga: extension=cirrus
ata0: enabled=1
ata0-master: type=cdrom, path={folder}/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={folder}/serial.txt
display_library: nogui
log: {folder}/bochs.log
panic: action=fatal
clock: sync=none, time0=utc
speaker: enabled=0
"""
LOADER = """DEFAULT linux
PROMPT 0
LABEL linux
  KERNEL vmlinuz
  APPEND initrd=initrd.gz console=ttyS0 quiet mitigations=off nokaslr lsm= apparmor=0 \
random.trust_cpu=on panic=-1 nmi_watchdog=0 idle=poll
"""


def run(*command: str | Path, cwd: Path) -> str:
    process = subprocess.run(
        command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{process.stdout[-2000:]}")
    return process.stdout


def build_bochs(folder: Path) -> Path:
    """The emulator's source folder, with the program built in it."""
    source, note = folder / "bochs-3.0", folder / "bochs-3.0-built-of"
    wanted = repr((BOCHS_SHA256, OPTIONS, PATCHES))
    if note.exists() and note.read_text() == wanted:
        return source
    note.unlink(missing_ok=True)
    shutil.rmtree(source, ignore_errors=True)
    archive = folder / "bochs.tar.xz"
    urllib.request.urlretrieve(BOCHS, archive)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != BOCHS_SHA256:
        sys.exit(f"{BOCHS}: expected sha256 {BOCHS_SHA256}, got {found}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    for name, replacements in PATCHES.items():
        text = (source / name).read_text()
        for old, new in replacements:
            assert text.count(old) == 1, f"{name}: expected once: {old}"
            text = text.replace(old, new)
        (source / name).write_text(text)
    flags = ("CXXFLAGS=-O3", "CFLAGS=-O3")
    run("./configure", *OPTIONS.split(), *flags, cwd=source)
    run("make", f"-j{os.cpu_count()}", cwd=source)
    note.write_text(wanted)
    return source


def unpack_package(folder: Path, name: str) -> Path:
    """The files of a Debian package."""
    target = folder / name
    if not target.exists():
        run("apt-get", "download", name, cwd=folder)
        (package,) = folder.glob(f"{name}_*.deb")
        run("dpkg-deb", "-x", package.resolve(), target.resolve(), cwd=folder)
    return target


def kernel(folder: Path) -> Path:
    depends = run("apt-cache", "depends", "linux-image-amd64", cwd=folder)
    name = re.search(r"Depends: (linux-image-\S+)", depends)[1]
    (found,) = (unpack_package(folder, name) / "boot").glob("vmlinuz-*")
    return found


def archived(files: dict[str, bytes | None]) -> bytes:
    """A file system for Linux to start from (cpio, "newc"); folders are None."""
    result = bytearray()
    for number, (name, content) in enumerate((*files.items(), ("TRAILER!!!", b"")), start=1):
        mode = stat.S_IFDIR | 0o755 if content is None else stat.S_IFREG | 0o755
        content = content or b""
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        result += b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (name.encode() + b"\0", content):
            result += part
            result += bytes(-len(result) % 4)
    return bytes(result)


def initial_files(folder: Path, tests: Path) -> bytes:
    init = folder / "init"
    run(
        "cc", "-O1", "-static", "-o", init.resolve(), Path(__file__).with_name("init.c"), cwd=folder
    )
    stripped = folder / "tests"
    run("strip", "-o", stripped.resolve(), tests.resolve(), cwd=folder)
    files: dict[str, bytes | None] = {name: None for name in ("dev", "proc", "lib", "lib64")}
    files |= {"init": init.read_bytes(), "tests": stripped.read_bytes()}
    for line in run("ldd", tests.resolve(), cwd=folder).splitlines():
        for path in re.findall(r"(/\S+)", line):
            kept = path if path.startswith("/lib64/") else f"/lib/{Path(path).name}"
            files[kept.lstrip("/")] = Path(path).read_bytes()
    return gzip.compress(archived(files), compresslevel=1)


def write_disc(folder: Path, tests: Path) -> None:
    linux = folder / "isolinux" / "usr/lib/ISOLINUX/isolinux.bin"
    modules = folder / "syslinux-common" / "usr/lib/syslinux/modules/bios"
    for package in ("isolinux", "syslinux-common"):
        unpack_package(folder, package)
    disc = pycdlib.PyCdlib()
    disc.new(interchange_level=4)
    contents = {
        "isolinux.bin": linux.read_bytes(),
        "ldlinux.c32": (modules / "ldlinux.c32").read_bytes(),
        "isolinux.cfg": LOADER.encode(),
        "vmlinuz": kernel(folder).read_bytes(),
        "initrd.gz": initial_files(folder, tests),
    }
    for name, content in contents.items():
        (folder / f"disc-{name}").write_bytes(content)
        disc.add_file(str(folder / f"disc-{name}"), f"/{name}")
    disc.add_eltorito("/isolinux.bin", "/boot.cat", boot_info_table=True)
    disc.write(str(folder / "boot.iso"))
    disc.close()


def emulate(folder: Path, tests: Path, seconds: int) -> int:
    bochs = build_bochs(folder)
    write_disc(folder, tests)
    machine = folder / "bochsrc"
    machine.write_text(MACHINE.format(bochs=bochs.resolve(), folder=folder.resolve()))
    serial = folder / "serial.txt"
    serial.unlink(missing_ok=True)
    command = [str(bochs.resolve() / "bochs"), "-q", "-f", str(machine.resolve())]
    try:
        subprocess.run(command, cwd=folder, timeout=seconds, capture_output=True)
    except subprocess.TimeoutExpired:
        print(f"stopped after {seconds} s")
    text = serial.read_text(errors="replace") if serial.exists() else ""
    print(text[text.find("STARTED") :] if "STARTED" in text else text)
    return 0 if "FINISHED 0" in text else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for what is fetched and built")
    parser.add_argument("tests", type=Path, help="the binary seqkernels_native_tests")
    parser.add_argument("--seconds", type=int, default=1200, help="to wait for it; default 1200")
    arguments = parser.parse_args()
    for tool in ("apt-get", "apt-cache", "dpkg-deb", "cc", "c++", "make", "strip", "ldd"):
        if shutil.which(tool) is None:
            sys.exit(f"expected {tool} on this machine, found none")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    sys.exit(emulate(arguments.folder, arguments.tests, arguments.seconds))


if __name__ == "__main__":
    main()
