"""What `foldray serve` checks before its replicas start."""

import pytest

from foldray.errors import UserError
from foldray.serving.address import listen
from foldray.serving.deploy import application
from foldray.serving.keys import api_key
from foldray.serving.server import ServeOptions, check_room

HEAD = {"CPU": 0.0, "memory": 1e9}
SMALL, LARGE, GPUS = {"CPU": 2.0}, {"CPU": 4.0}, {"CPU": 3.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "options", "threads", "message"),
    [
        ([SMALL, LARGE], {}, 4, ""),
        ([SMALL], {}, 2, ""),
        ([{"CPU": 64.0}], {}, 8, ""),
        ([SMALL, LARGE], {"threads": 3}, 3, ""),
        ([LARGE, GPUS], {"gpu": True}, 3, ""),
        ([GPUS], {"gpu": True, "threads": 1, "replicas": 2}, 1, ""),
        ([GPUS], {"gpu": True, "threads": 1, "replicas": 3}, 1, "room for 2 of 3 replicas now"),
        ([SMALL, LARGE], {"threads": 2, "replicas": 4}, 2, "room for 3 of 4 replicas now"),
        ([HEAD], {"gpu": True}, 8, "none of this Ray has a CPU now"),
    ],
)
def test_replicas_have_threads_that_a_node_has_room_for(
    nodes: list[dict[str, float]],
    options: dict[str, int],
    threads: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ServeOptions("uri", "tiny", **options)  # type: ignore[arg-type]
    assert check_room([HEAD, *nodes], given, share=8) == threads
    printed = capsys.readouterr().err
    assert message in printed
    assert bool(message) == bool(printed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu": True}, "--gpu: no node of this Ray has a GPU; leave it out"),
        ({"threads": 5}, "--threads: 5 exceeds the 4 CPUs of the largest node; use fewer"),
    ],
)
def test_what_no_node_can_hold_is_one_line(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as refused:
        check_room([HEAD, SMALL, LARGE], ServeOptions("uri", "tiny", **options), share=8)  # type: ignore[arg-type]
    assert str(refused.value) == message


def test_a_key_from_a_file_ends_before_its_newline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDRAY_API_KEY", f" {'k' * 24}\n")
    assert api_key() == "k" * 24
    monkeypatch.delenv("FOLDRAY_API_KEY")
    assert api_key() is None


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("", "is shorter than 16 characters"),
        (f"{'k' * 15}\n", "is shorter than 16 characters"),
        ("ein-langer-schlüssel", "has characters that no header carries"),
        ("a key with spaces in it", "has characters that no header carries"),
        ("two-lines-of-keys\ntwo-lines-of-keys", "has characters that no header carries"),
        ("k" * 24 + "\udcff", "has characters that no header carries"),
    ],
)
def test_a_key_that_clients_could_not_send_is_one_line(key: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDRAY_API_KEY", key)
    with pytest.raises(UserError) as refused:
        api_key()
    assert str(refused.value) == f"FOLDRAY_API_KEY: {problem}; use `openssl rand -hex 24`"


def test_a_port_belongs_to_the_first_server_at_once() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError) as refused:
            listen("127.0.0.1", port)
    problem = "can't be listened on (Address already in use); choose another"
    assert str(refused.value) == f"--port: 127.0.0.1:{port} {problem}"
    listen("127.0.0.1", port).close()


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        ("nowhere.invalid", "nowhere.invalid can't be found ("),
        ("a" * 64, f"{'a' * 64} can't be found ("),
        ("192.0.2.1", "192.0.2.1 is no address of this machine; "),
    ],
)
def test_a_host_that_is_not_here_is_named(host: str, problem: str) -> None:
    with pytest.raises(UserError) as refused:
        listen(host, 0)
    assert str(refused.value).startswith(f"--host: {problem}")


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ({"name": "tiny"}, "model: is missing; set it under args"),
        ({"model": "m", "latency": "soon"}, "latency: 'soon' is not a time from 10ms to 600s, such as 300ms or 1.5s"),
        ({"model": "m", "latency": 0}, "latency: '0' is not a time from 10ms to 600s, such as 300ms or 1.5s"),
        (
            {"model": "m", "latency": "300ms", "depth": 6},
            "latency: chooses the depth itself; leave out depth, or latency",
        ),
        ({"model": "m", "replicas": "two"}, "replicas: is wrong (Input should be a valid integer"),
        ({"model": "m", "threads": 0}, "threads: is wrong (Input should be greater than or equal to 1)"),
        ({"model": "m", "replica": 2}, "replica: is not known; use model, store, name, depth, latency, replicas"),
    ],
)
def test_a_wrong_field_of_a_config_file_is_one_line(
    args: dict[str, object], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDRAY_API_KEY", "k" * 24)
    with pytest.raises(UserError) as refused:
        application(args)
    assert str(refused.value).startswith(problem)
