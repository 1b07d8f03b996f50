"""Sweeps on a real Slurm of one node, which is started here, by whatever user, and stopped again.

Skipped where its programs are missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra import compose
from hydra.types import RunMode

from palimpsa.config.compose import CONFIG_DIR, composition
from palimpsa.config.errors import ConfigError
from palimpsa.runs.directory import RunDirectory
from palimpsa.sweeps.launchers import check_launcher
from palimpsa.training.run import run

ROOT = CONFIG_DIR.parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
# Debian keeps the daemons where only root looks for programs.
SEARCHED = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
MISSING = [program for program in PROGRAMS if shutil.which(program, path=SEARCHED) is None]

pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"needs Slurm: {', '.join(MISSING)} not found; on Debian and Ubuntu as root: "
    "apt-get install slurmctld slurmd slurm-client munge",
)

# Two devices that every Linux has stand in for GPUs: Slurm hands them out, one to a job.
SLURM_CONF = """\
ClusterName=palimpsa
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
KillWait=1
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1000
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node NodeHostname=localhost NodeAddr=127.0.0.1 CPUs=8 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=node Default=YES MaxTime=INFINITE State=UP
"""
GRES_CONF = """\
AutoDetect=off
NodeName=node Name=gpu File=/dev/null
NodeName=node Name=gpu File=/dev/zero
"""
# A run of some seconds, whatever a step costs beside its arithmetic.
LONG = (
    "model=transformer",
    "task.stages=[{seq_len:8,num_pairs:2,max_steps:150}]",
    "task.tokens_per_step=2048",
    "task.stop_accuracy=2",
    "task.validation_every=75",
    "trainer.log_every=10",
    "trainer.probe_every=75",
    "trainer.checkpoint_every=20",
)


@dataclass
class Cluster:
    """A running Slurm: its folder, and the environment in which its commands find it."""

    folder: Path
    env: dict[str, str]
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    def start(self, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=SEARCHED)
        assert path is not None
        with (self.folder / f"{program}.log").open("w") as log:
            self.daemons[program] = subprocess.Popen([path, *arguments], env=self.env, stdout=log, stderr=log)

    def ask(self, *command: str) -> str:
        """What a Slurm command prints; an empty string where it fails."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=300)
        return done.stdout if done.returncode == 0 else ""

    def jobs(self) -> dict[str, str]:
        """The states of the jobs in the queue, by array task: {"1_0": "RUNNING"}."""
        lines = self.ask("squeue", "--noheader", "--array", "--format=%F_%K %T").splitlines()
        return dict(line.split() for line in lines)

    def logs(self) -> str:
        """The ends of the daemons' logs, for the message of a failure."""
        files = sorted(self.folder.glob("*.log"))
        return "".join(f"\n--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            gone = [program for program, daemon in self.daemons.items() if daemon.poll() is not None]
            if gone or time.monotonic() > deadline:
                pytest.fail(f"waited for {what}; stopped: {gone}; jobs: {self.jobs()}{self.logs()}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self.jobs():
            self.ask("scancel", "--full", "--signal=KILL", *self.jobs())
            self.ask("scancel", *self.jobs())
            deadline = time.monotonic() + 15
            while self.jobs() and time.monotonic() < deadline:
                time.sleep(0.1)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not pytest's folder: a socket's path may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="palimpsa-slurm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        controller_port, node_port = free_ports(2)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        (folder / "slurm.conf").write_text(
            SLURM_CONF.format(folder=folder, controller_port=controller_port, node_port=node_port, user=os.getuid())
        )
        (folder / "gres.conf").write_text(GRES_CONF)
        # Without what a Slurm job that runs these tests would hand on.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN"))}
        env = {**inherited, "PATH": SEARCHED, "SLURM_CONF": str(folder / "slurm.conf")}
        slurm = Cluster(folder, env)
        files = {option: folder / f"munge.{option}" for option in ("socket", "pid", "seed")}
        try:
            slurm.start(
                "munged",
                # The folder is this user's alone, and so are those who authenticate.
                "--force",
                "--foreground",
                f"--key-file={key}",
                f"--socket={files['socket']}",
                f"--pid-file={files['pid']}",
                f"--seed-file={files['seed']}",
                f"--log-file={folder}/munged.own.log",
            )
            slurm.wait_for(files["socket"].exists, "munged")
            slurm.start("slurmctld", "-D", "-f", env["SLURM_CONF"])
            slurm.wait_for(lambda: "UP" in slurm.ask("scontrol", "ping"), "slurmctld")
            slurm.start("slurmd", "-D", "-N", "node", "-f", env["SLURM_CONF"])
            slurm.wait_for(lambda: "State=IDLE" in slurm.ask("scontrol", "show", "node", "node"), "slurmd")
            yield slurm
        finally:
            slurm.stop()


def train(cluster: Cluster, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts/train.py"), "-m", "hydra/launcher=submitit_slurm", *overrides]
    env = {**cluster.env, "PALIMPSA_REVISION": "of-the-launching-process"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, cluster: Cluster, seconds: float = 300) -> None:
    """Waits for a sweep that is to end well."""
    try:
        told, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        told, _ = process.communicate()
        pytest.fail(f"the sweep did not end in {seconds} s; jobs: {cluster.jobs()}\n{told}{cluster.logs()}")
    assert process.returncode == 0, told + cluster.logs()


def comparable(directory: Path) -> tuple:
    """What two runs of one config must share: all but times."""
    result = json.loads((directory / "result.json").read_text())
    history = pd.read_csv(directory / "history.csv").drop(columns="tokens_per_s")
    return result["status"], result["stages"], result["run"], result["config_hash"], history.to_csv()


def undisturbed(tiny_config, folder: Path, *overrides: str) -> Path:
    """The directory of the same run by what the basic launcher calls."""
    cfg = tiny_config(*overrides, f"results_dir={folder}")
    run(cfg)
    return Path(cfg.run_dir)


def run_directory(results: Path, seed: int, model: str) -> Path:
    return results / f"runs/mqar_curriculum/laptop/{model}/lr_0.00464/seed_{seed}"


def test_jobs_that_are_requeued_and_preempted_end_with_the_results_of_the_basic_launcher(
    cluster, tiny_overrides, tiny_config, tmp_path
):
    """And each has a GPU of its own. To import what trains takes seconds a job: one sweep shows all of it."""
    process = train(
        cluster,
        *tiny_overrides,
        *LONG,
        f"results_dir={tmp_path}/slurm",
        "seed=1,2",
        "hydra.launcher.gres=gpu:1",
        # The first time it is started there is no count of restarts.
        f"hydra.launcher.setup=['env > {tmp_path}/env.$SLURM_ARRAY_TASK_ID.$SLURM_RESTART_COUNT']",
    )
    # The first is taken away from its node, the second is told by submitit's signal that it will be.
    disturb = {1: ("scontrol", "requeue"), 2: ("scancel", "--signal=USR2")}
    directories = {seed: run_directory(tmp_path / "slurm", seed, "transformer") for seed in disturb}
    jobs: dict[int, str] = {}
    try:
        while disturb.keys() - jobs.keys():
            ready = [seed for seed in disturb if seed not in jobs and last_checkpoint(directories[seed]).exists()]
            for seed in ready:
                (jobs[seed],) = (job for job in cluster.jobs() if job.endswith(f"_{seed - 1}"))
                cluster.ask(*disturb[seed], jobs[seed])
            if process.poll() is not None:
                finish(process, cluster)
                pytest.fail("the sweep ended before its runs could be disturbed")
            time.sleep(0.01)
        requeued = datetime.now(UTC)
        for seed, job in jobs.items():
            cluster.wait_for(lambda job=job: cluster.jobs().get(job) == "PENDING", f"{job} to be back in the queue")
            shutil.copy(last_checkpoint(directories[seed]), tmp_path / f"{seed}.ckpt")
            # Slurm lets a requeued job wait for two minutes.
            cluster.ask("scontrol", "update", f"jobid={job}", "StartTime=now")
        finish(process, cluster)
    finally:
        process.kill()
        process.wait()

    for seed, directory in directories.items():
        expected = undisturbed(tiny_config, tmp_path / "basic", *LONG, f"seed={seed}")
        assert comparable(directory) == comparable(expected)
        assert comparable(directory)[0] == "finished"
        provenance = json.loads((directory / "result.json").read_text())["provenance"]
        assert provenance["git_revision"] == "of-the-launching-process"
        assert datetime.fromisoformat(provenance["started"]) > requeued
        (log,) = (tmp_path / f"slurm/runs/.submitit/{jobs[seed]}").glob("*_log.out")
        assert log.read_text().count("Starting with JobEnvironment") == 2
        # It went on instead of starting over: no two runs measure the same throughput, and these rows are still those
        # of the checkpoint that the killed process left.
        checkpoint = torch.load(tmp_path / f"{seed}.ckpt", weights_only=True)
        assert 0 < checkpoint["global_step"] < 150
        kept = {row["step"]: row["tokens_per_s"] for row in rows_with_throughput(checkpoint)}
        history = pd.read_csv(directory / "history.csv").set_index("step")
        assert kept
        assert history.loc[list(kept), "tokens_per_s"].tolist() == list(kept.values())
    (log,) = (tmp_path / f"slurm/runs/.submitit/{jobs[2]}").glob("*_log.out")
    assert "this job is preempted" in log.read_text()
    # When both ran side by side.
    environments = [(tmp_path / f"env.{task}.").read_text() for task in (0, 1)]
    devices = [re.findall(r"^CUDA_VISIBLE_DEVICES=(.*)$", environment, re.MULTILINE) for environment in environments]
    assert sorted(devices) == [["0"], ["1"]]
    # Below the sweep's directory, which the nodes share: a node has a /tmp of its own.
    assert all(f"\nPALIMPSA_PROGRESS_DIR={tmp_path}/slurm/runs/.progress\n" in told for told in environments)
    assert not (tmp_path / "slurm/runs/.progress").exists()


def test_one_run_of_several_processes_is_requeued_and_goes_on(cluster, tiny_overrides, tmp_path):
    """scripts/slurm/pretrain.sbatch: told by the signal that Slurm sends before a time limit."""
    overrides = (*tiny_overrides, *LONG, f"results_dir={tmp_path}", "task=mqar_curriculum", "trainer.strategy=fsdp")
    script = ("--parsable", f"--output={tmp_path}/log", "scripts/slurm/pretrain.sbatch", *overrides)
    env = {**cluster.env, "NUM_PROCESSES": "2", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["sbatch", *script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    job, directory = done.stdout.strip(), RunDirectory(run_directory(tmp_path, 1, "transformer"))

    def state() -> str:
        return cluster.ask("squeue", "--noheader", "--format=%T", f"--jobs={job}").strip()

    cluster.wait_for(directory.has_checkpoint, "a checkpoint")
    cluster.ask("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_for(lambda: state() == "PENDING", "the job to be back in the queue")
    (step,) = set(re.findall(r"stopped by SIGUSR1 after step (\d+)", (tmp_path / "log").read_text()))
    assert directory.checkpoint_step() == int(step)
    assert not directory.result_file.exists()
    # Slurm lets a requeued job wait for two minutes; within a second its node takes it for the one that has ended.
    time.sleep(2)
    cluster.ask("scontrol", "update", f"jobid={job}", "StartTime=now")
    cluster.wait_for(directory.result_file.exists, "the run's result")
    assert json.loads(directory.result_file.read_text())["status"] == "finished"
    history = pd.read_csv(directory.history_file)
    assert history["loss"].notna().sum() == 16
    # The cluster is that of other tests too.
    cluster.wait_for(lambda: cluster.jobs() == {}, "the job to leave the queue")


def last_checkpoint(directory: Path) -> Path:
    return directory / "checkpoints" / "last.ckpt"


def rows_with_throughput(node: Any) -> list[dict[str, Any]]:
    """The rows of the history, wherever in a checkpoint they are."""
    if isinstance(node, dict) and "tokens_per_s" in node:
        return [node]
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    return [row for child in children for row in rows_with_throughput(child)]


# Outside of tests palimpsa.sweeps.launchers sees to it.
@pytest.mark.filterwarnings(r"ignore:\s*'hydra/launcher")
@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        ("hydra.launcher.partition=night", "partition=night, and Slurm says: sbatch: error: invalid partition"),
        ("hydra.launcher.gres=tpu:1", "gres=tpu:1, and Slurm says: sbatch: error: Invalid generic resource"),
    ],
)
def test_what_slurm_would_refuse_is_refused_before_anything_is_submitted(cluster, override, refusal, monkeypatch):
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.env[name])
    overrides = ["hydra/launcher=submitit_slurm", override]
    with composition(overrides):
        cfg = compose("train", overrides, return_hydra_config=True)
    cfg.hydra.mode = RunMode.MULTIRUN
    with pytest.raises(ConfigError) as caught:
        check_launcher(cfg)
    assert refusal in str(caught.value)
    assert cluster.jobs() == {}
