"""A walk through cluster/README.md, "Machines of your own": its commands, in its order, over sshd on hosts that are
namespaces of this machine.

They have no way out, so what `pip` would fetch lies there already: a virtual environment that sees the packages of the
one that runs the tests.
"""

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foldray import storage
from foldray.results.reader import read_rows
from tests.support.checkout import copy_checkout
from tests.support.commands import TINY
from tests.support.hosts import PATIENCE, Host, network, require_hosts, trains, wait_until
from tests.support.paths import PROJECT

if TYPE_CHECKING:
    from tests.support.s3_server import S3Server

pytest_plugins = ["tests.support.s3_server"]
pytestmark = [pytest.mark.ray, pytest.mark.walk]

BIN = Path(sys.executable).parent
MACHINES = ("head", "w1", "w2")
SSHD = """
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
AcceptEnv LANG
"""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, Host]]:
    """An operator's machine, three machines with sshd, and an S3 server's."""
    require_hosts()
    missing = [tool for tool in ("/usr/sbin/sshd", "ssh", "rsync") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"machines of one's own need {', '.join(missing)}")
    keygen("client", tmp_path)
    with network(tmp_path / "hosts", "operator", *MACHINES, "s3") as up:
        for name in MACHINES:
            start_sshd(up[name], tmp_path / "client.pub")
            make_environment(up[name])
        yield up


def keygen(name: str, folder: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)


def start_sshd(host: Host, client: Path) -> None:
    keygen("host_key", host.folder)
    shutil.copy(client, host.folder / "authorized_keys")
    (host.folder / "sshd_config").write_text(SSHD.format(address=host.address, folder=host.folder))
    host.run("mkdir", "-p", "/run/sshd")
    with (host.folder / "sshd.log").open("w") as log:
        host.popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(host.folder / "sshd_config")], stdout=log, stderr=log)


def make_environment(host: Host) -> None:
    """~/foldray-venv, in which all that foldray requires is installed already, and pip asks no index."""
    seen, inside = host.home / "foldray-venv", host.folder / "home" / "foldray-venv"
    host.run(sys.executable, "-m", "venv", "--without-pip", str(seen))
    packages = sysconfig.get_path("purelib")
    (inside / Path(packages).relative_to(sys.prefix) / "already.pth").write_text(packages)
    for name, module in {"pip": "pip._internal.cli.main", "ray": "ray.scripts.scripts"}.items():
        script = inside / "bin" / name
        script.write_text(f"#!{seen}/bin/python\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
        script.chmod(0o755)
    (inside / "pip.conf").write_text("[install]\nno-index = true\nno-build-isolation = false\n")


def read_commands() -> list[str]:
    """The commands of README's "Machines of your own", behind the one that installs."""
    section = (
        (PROJECT / "cluster" / "README.md").read_text().partition("## Machines of your own")[2].partition("\n## ")[0]
    )
    block = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))
    install, *commands = block.replace("\\\n", " ").splitlines()
    assert "pip install ." in install
    return [command.partition("    #")[0] for command in commands]


class Operator:
    """Who types commands in a checkout, on a machine that has foldray, the key and the store's keys."""

    def __init__(self, host: Host, server: "S3Server", key: Path) -> None:
        self.host, home = host, host.folder / "home"
        self._environment = {
            "PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(host.home), "TMPDIR": str(host.folder), "TERM": "dumb",
        }  # fmt: skip
        copy_checkout(home / "foldray")
        (home / ".ssh").mkdir(mode=0o700)
        shutil.copy(key, home / ".ssh" / "id_ed25519")
        (home / ".aws").mkdir()
        keys = server.environment
        lines = [f"{name.lower()} = {keys[name]}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
        (home / ".aws" / "credentials").write_text("\n".join(["[default]", *lines, ""]))
        self.cluster_file = home / "foldray" / "cluster" / "on-premise.yaml"

    def begin(self, command: str) -> "subprocess.Popen[str]":
        return self.host.popen(
            ["bash", "-c", command], self.host.home / "foldray", env=self._environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def type(self, command: str) -> str:
        process = self.begin(command)
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f"{command}\n{said}"
        return said


def addresses(hosts: dict[str, Host], server: "S3Server") -> dict[str, str]:
    """What an operator changes in the cluster file."""
    return {
        "192.0.2.10": hosts["head"].address, "192.0.2.11": hosts["w1"].address, "192.0.2.12": hosts["w2"].address,
        "http://192.0.2.5:9000": server.endpoint, "ssh_user: ubuntu": "ssh_user: root",
        "# ~/.aws/credentials": "~/.aws/credentials",
    }  # fmt: skip


def test_from_nothing_to_results_and_back(
    hosts: dict[str, Host], server: "S3Server", own_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    ask = hosts["s3"].call  # this process is on none of the hosts
    ask(storage.upload, own_corpus, server.uri("voices"))
    operator = Operator(hosts["operator"], server, tmp_path / "client")
    change(operator.cluster_file, addresses(hosts, server))
    create, up, status, dashboard, submit, results, down = read_commands()
    store = server.uri("foldray")
    operator.type(create)
    operator.type(yes(up))
    wait_until(lambda: "3 local.cluster.node" in operator.type(status), "three machines")
    tunnel = operator.begin(dashboard)
    submit = submit.replace("s3://my-corpora/an4", server.uri("voices")).replace("s3://my-bucket/foldray", store)
    overrides = " ".join(f"'{field}'" for field in [*TINY, "scale.placement=STRICT_SPREAD"])
    is_open = lambda: operator.host.run("ss", "-Hltn", "sport = 8265")  # noqa: E731
    wait_until(lambda: is_open() or tunnel.poll() is not None, "the tunnel")
    job = operator.begin(f"{submit} {overrides}")
    wait_until(lambda: all(trains(hosts[name]) for name in MACHINES) or job.poll() is not None, "three workers")
    said, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, said
    assert "trained   24 steps" in said
    assert tunnel.poll() is None
    (run,) = ask(storage.list_folders, f"{store}/runs")
    assert [row["depth"] for row in ask(read_rows, store)] == [3, 6]
    assert ask(storage.exists, f"{store}/report/index.html")
    assert run in operator.type(results.replace("s3://my-bucket/foldray", store))
    operator.type(yes(down))
    assert not [process for process in hosts["head"].processes() if "ray::" in process or "raylet" in process]


def change(file: Path, changes: dict[str, str]) -> None:
    """Put each new text in the place of an old one, which must be there."""
    text = file.read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    file.write_text(text)


def yes(command: str) -> str:
    """`ray up` and `ray down` ask at a terminal; here there is none."""
    return f"{command} --yes"
