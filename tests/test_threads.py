"""One OpenMP runtime and one pool of threads in the process, torch's."""

from __future__ import annotations

from subprocesses import run_python

# Run before the work of each process: seqkernels beside torch, and what there is to see.
PRELUDE = """
    import os, re, sys, torch, seqkernels
    from seqkernels import functional

    words, maps = torch.randn(8, 200, 64), torch.randn(100, 64, 3)
    steps, gates, recurrent = torch.randn(20, 16, 64), torch.randn(512, 64), torch.randn(512, 128)
    large = torch.randn(512, 512)

    def ours(gradient=True):
        leaf = words.clone().requires_grad_(gradient)
        pooled = functional.conv1d_max_pool(leaf, maps, channels_last=True)
        weights = gates.clone().requires_grad_(gradient)
        output, _ = functional.lstm(steps, None, weights, recurrent)
        if gradient:
            (pooled.sum() + output.sum()).backward()

    def torchs():
        (large @ large).tanh().sum()

    def threads():
        return set(os.listdir("/proc/self/task"))

    def runtimes():
        names = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
        openmp = re.compile(r"lib(gomp|omp|iomp5)[^/]*[.]so")
        return sorted({os.path.realpath(name) for name in names if openmp.search(name)})
"""


def lines_of(code: str, **environment: str) -> list[str]:
    process = run_python(PRELUDE + code, **environment)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_there_is_one_openmp_runtime_and_it_is_torchs():
    *before, named = lines_of("""
    torch.set_num_threads(2)
    torchs()
    before = runtimes()
    ours()
    torchs()
    assert runtimes() == before, runtimes()
    print(*before, sep="\\n")
    print(os.path.realpath(seqkernels.show_config().rpartition(", of ")[2]))
    """)
    assert before == [named]


def test_one_thread_is_obeyed():
    created, counted = lines_of("""
    torch.set_num_threads(1)
    before = threads()
    for _ in range(3):
        ours()
        torchs()
    print(len(threads() - before))
    print(seqkernels.show_config().count("threads: 1,"))
    """)
    assert (created, counted) == ("0", "1")


def test_as_many_threads_as_asked_for_are_used():
    for count in (2, 3):
        created, kept, config = lines_of(f"""
    torch.set_num_threads({count})
    before = threads()
    ours(gradient=False)
    first = threads()
    print(len(first - before))
    ours()
    print(threads() == first)
    print(seqkernels.show_config().rpartition("threads: ")[2])
    """)
        assert (created, kept) == (str(count - 1), "True")
        assert config.startswith(f"{count}, ")


def test_alternating_with_torch_creates_no_further_threads():
    alternating, after_torch = lines_of("""
    torch.set_num_threads(2)
    torchs()
    ours()
    first = threads()
    seen = set()
    for _ in range(10):
        torchs()
        seen |= threads()
        ours()
        seen |= threads()
    print(seen == first)
    print(len(first))
    """)
    assert alternating == "True"
    only_torch = lines_of("""
    torch.set_num_threads(2)
    for _ in range(3):
        torchs()
    print(len(threads()))
    """)
    assert only_torch == [after_torch]


def test_a_change_of_the_number_is_obeyed_at_once():
    counts = lines_of("""
    for count in (1, 3, 1, 2):
        torch.set_num_threads(count)
        before = threads()
        ours()
        print(len(threads() - before))
    """)
    assert counts[:3] == ["0", "2", "0"]


def test_threads_of_python_may_call_at_the_same_time():
    (same,) = lines_of("""
    import threading
    torch.set_num_threads(2)
    expected = functional.lstm(steps, None, gates, recurrent)[0]
    pooled = functional.conv1d_max_pool(words, maps, channels_last=True)
    right = []

    def work():
        for _ in range(5):
            output = functional.lstm(steps, None, gates, recurrent)[0]
            again = functional.conv1d_max_pool(words, maps, channels_last=True)
            right.append(torch.equal(output, expected) and torch.equal(again, pooled))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    print(len(right) == 20 and all(right))
    """)
    assert same == "True"


def test_fewer_threads_than_asked_for_give_the_same_bits():
    code = """
    torch.set_num_threads(4)
    torch.manual_seed(0)
    # Drawn, not computed: torch's first cos on several threads may round some otherwise.
    words, maps = torch.randn(3, 200, 64), torch.randn_like(maps)
    steps, gates, recurrent = map(torch.randn_like, (steps, gates, recurrent))
    output, _ = functional.lstm(steps, None, gates / 8, recurrent / 8)
    pooled = functional.conv1d_max_pool(words, maps, channels_last=True, padding=1)
    print(len(threads()))
    print(output.double().sum().item(), pooled.double().sum().item())
    """
    (many, expected), (one, found) = lines_of(code), lines_of(code, OMP_THREAD_LIMIT="1")
    assert int(one) == int(many) - 3
    assert found == expected


def test_a_forked_process_works_on_one_thread():
    """As a DataLoader's workers do."""
    same, status = lines_of("""
    torch.set_num_threads(2)
    ours()
    expected = functional.conv1d_max_pool(words, maps, channels_last=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        found = functional.conv1d_max_pool(words, maps, channels_last=True)
        print(torch.equal(found, expected), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(status)
    """)
    assert (same, status) == ("True", "0")
