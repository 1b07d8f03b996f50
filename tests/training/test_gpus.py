"""Processes that share a machine spread over its GPUs, and give them back however they end. No GPU is needed."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.training import gpus as devices
from palimpsa.training.gpus import check_device, lease_gpu

# A process that leases a GPU of a machine with the UUIDs given, says which, and holds it until its input ends.
HOLDER = """
import sys
from palimpsa.training import gpus as devices
devices.visible_gpus = lambda: sys.argv[1].split(",")
print(devices.lease_gpu(eval(sys.argv[2])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def own_tmp(tmp_path, monkeypatch):
    """A temporary directory without other leases, for this process and those it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(devices, "_lease", None)
    yield tmp_path
    if devices._lease is not None:
        devices._lease.file.close()


@contextmanager
def holders(count: int, uuids: str = "a,b", gpus: str = "None") -> Iterator[list[subprocess.Popen]]:
    """Processes that all start at once and hold a GPU each."""
    with ExitStack() as stack:
        command = [sys.executable, "-c", HOLDER, uuids, gpus]
        processes = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(count)
        ]
        for process in processes:
            stack.callback(process.kill)
        yield processes


def leased(processes: list[subprocess.Popen]) -> list[int]:
    return [int(process.stdout.readline()) for process in processes if process.stdout is not None]


def test_processes_that_start_together_spread_evenly_over_the_gpus(own_tmp):
    with holders(6, "a,b,c") as processes:
        assert Counter(leased(processes)) == {0: 2, 1: 2, 2: 2}


def test_only_the_gpus_asked_for_are_used_and_the_least_used_comes_first(own_tmp):
    with holders(2, gpus="[1]") as elsewhere:
        assert leased(elsewhere) == [1, 1]
        with holders(3) as processes:
            # Two on GPU 1 already: the first two go to GPU 0, and the third to the first of equals.
            assert sorted(leased(processes)) == [0, 0, 0]


def test_a_killed_process_leaves_its_gpu_to_the_next(own_tmp):
    with holders(2) as processes:
        first, second = leased(processes)
        assert {first, second} == {0, 1}
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        with holders(1) as successor:
            assert leased(successor) == [first]


def test_what_counts_is_how_many_hold_a_gpu_not_which_slots_are_free(own_tmp):
    with holders(3, gpus="[0]") as on_0, holders(1, gpus="[1]") as on_1:
        assert leased(on_0) + leased(on_1) == [0, 0, 0, 1]
        on_0[0].kill()
        on_0[0].wait()
        # Two on GPU 0, one of its earlier slots free, and one on GPU 1.
        with holders(1) as processes:
            assert leased(processes) == [1]


def test_a_gpu_is_told_by_its_uuid_whatever_index_it_has(own_tmp):
    with holders(1, "a,b") as processes:
        assert leased(processes) == [0]
        # GPU "a" is taken, which the next process sees as 1.
        with holders(1, "b,a") as others:
            assert leased(others) == [0]
        with holders(1, "a,b") as others:
            assert leased(others) == [1]


def test_a_process_keeps_its_gpu_and_a_fork_takes_one_of_its_own(own_tmp, monkeypatch):
    monkeypatch.setattr(devices, "visible_gpus", lambda: ["a", "b"])
    assert [lease_gpu(None), lease_gpu(None), lease_gpu([0])] == [0, 0, 0]
    with holders(1, gpus="[0]") as processes:
        assert leased(processes) == [0]
        # The other one is free now, and moving there would cost a second context.
        assert lease_gpu(None) == 0
    child = os.fork()
    if not child:
        os._exit(lease_gpu(None))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert lease_gpu(None) == 0
    # Of others than it holds, it takes one of these and gives the first back.
    assert lease_gpu([1]) == 1
    assert held(own_tmp) == {"b.0"}


def held(folder) -> set[str]:
    """The lease files that some process holds."""
    names = set()
    for path in folder.glob("palimpsa-gpus-*/*.[0-9]*"):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                names.add(path.name)
    return names


def test_processes_tune_one_after_the_other_and_a_killed_one_is_in_nobodys_way(own_tmp):
    program = (
        "import sys\nfrom palimpsa.training.gpus import machine_lock\n"
        "with machine_lock('tuning', lambda: print('waits', flush=True)): print('tunes', flush=True)"
    )
    command = [sys.executable, "-c", f"{program}; sys.stdin.read()"]
    with ExitStack() as stack:
        first = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        stack.callback(first.kill)
        assert first.stdout is not None
        assert first.stdout.readline() == b"tunes\n"
        second = stack.enter_context(subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE))
        stack.callback(second.kill)
        assert second.stdout is not None
        assert second.stdout.readline() == b"waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(3)
        # At something else it waits for nobody.
        with devices.machine_lock("choosing"):
            first.kill()
        assert second.wait(60) == 0


def test_a_run_tells_that_it_compiles_before_it_does(own_tmp):
    from palimpsa.training.module import TrainingModule

    told: list[str] = []
    run = SimpleNamespace(
        device=torch.device("cuda"),
        trainer=SimpleNamespace(world_size=1),
        curriculum=SimpleNamespace(done=False, report=lambda step, note: told.append(note)),
        _warm_up=lambda: told.append("warmed up"),
    )
    TrainingModule.on_fit_start(cast("TrainingModule", run))
    assert [line.split()[0] for line in told] == ["compiles", "warmed"]


def test_children_forked_while_tuning_do_not_keep_others_from_it(own_tmp):
    program = "from palimpsa.training.gpus import machine_lock\nwith machine_lock('tuning'): pass"
    with devices.machine_lock("tuning"):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_temporary_directory_that_cannot_be_made_is_named(own_tmp, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(own_tmp / "missing"))
    with pytest.raises(ConfigError, match=r"TMPDIR: .*missing"), devices.machine_lock("tuning"):
        pass


def test_a_directory_of_another_user_is_refused(own_tmp, monkeypatch):
    monkeypatch.setattr(devices, "visible_gpus", lambda: ["a"])
    (own_tmp / "elsewhere").mkdir()
    (own_tmp / f"palimpsa-gpus-{os.getuid()}").symlink_to(own_tmp / "elsewhere")
    with pytest.raises(ConfigError, match=r"TMPDIR: .*palimpsa-gpus-.* expected a directory of this user's"):
        lease_gpu(None)


def test_no_gpu_is_no_lease(own_tmp, monkeypatch):
    monkeypatch.setattr(devices, "visible_gpus", list)
    with pytest.raises(ConfigError, match="CUDA shows no GPU"):
        lease_gpu(None)


@pytest.mark.parametrize(
    ("gpus", "num_gpus", "message"),
    [
        ("[7]", 2, "trainer.gpus: got 7, expected indices below 2: this machine shows 2 GPUs"),
        ("[0,1]", 1, "trainer.gpus: got 1, expected indices below 1: this machine shows 1 GPU"),
        ("[-1]", 2, "trainer.gpus: got -1, expected indices of 0 and above"),
        ("[0,1,0]", 2, "trainer.gpus: got 0 twice, expected every index once"),
        ("[]", 2, "trainer.gpus: got an empty list, expected indices such as [0, 1], or null for every GPU"),
        ("[0]", 0, "trainer=gpu with trainer.gpus=[0]: needs an NVIDIA GPU"),
    ],
)
def test_gpus_that_this_machine_does_not_have_are_named(gpus, num_gpus, message, compose_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: num_gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    with pytest.raises(ConfigError) as caught:
        check_device(compose_config("trainer=gpu", f"trainer.gpus={gpus}"))
    assert str(caught.value).startswith(message)


def test_gpus_for_a_trainer_on_the_cpu_are_named(compose_config):
    with pytest.raises(ConfigError, match=r"trainer.gpus: got \[0\], expected null with trainer=cpu"):
        check_device(compose_config("trainer=cpu", "trainer.gpus=[0]"))


@pytest.mark.parametrize("gpus", ["null", "[0]", "[1,0]"])
def test_gpus_of_this_machine_are_fine(gpus, compose_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_device(compose_config("trainer=gpu", f"trainer.gpus={gpus}"))


@pytest.mark.gpu
def test_a_real_gpu_is_leased_by_its_uuid(own_tmp):
    import torch

    uuids = devices.visible_gpus()
    assert len(set(uuids)) == torch.cuda.device_count()
    index = lease_gpu(None)
    assert held(own_tmp) == {f"{uuids[index]}.0"}


@pytest.mark.parametrize(
    ("error", "is_unusable"),
    [
        (torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (FloatingPointError("the loss is nan"), False),
        (RunDirectoryError("last.ckpt: got 17 bytes"), False),
        (OSError("No space left on device"), False),
    ],
)
def test_a_gpu_is_unusable_by_what_may_stay_with_the_process(own_tmp, monkeypatch, error, is_unusable):
    monkeypatch.setattr(devices, "_unusable", False)
    monkeypatch.setattr(devices, "visible_gpus", lambda: ["a", "b"])
    assert lease_gpu(None) == 0
    devices.record_gpu_failure(error)
    assert devices.gpu_is_unusable() == is_unusable
    with holders(1) as processes:
        # The process that trains in this one's place gets what this one gave up.
        assert leased(processes) == [0 if is_unusable else 1]
