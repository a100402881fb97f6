"""The HTTP face over a manager among fakes: shapes, errors, limits, streams."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_house import FakeHouse
from fastapi import FastAPI

from twofold.api.app import create_app
from twofold.api.limits import BODY_LIMIT_BYTES
from twofold.api.services import Services
from twofold.client.sdk import AsyncTwofold
from twofold.errors import InvalidInput, NotFound, TwofoldError, Unsupported
from twofold.model.instance import Volume
from twofold.operations.operation import name_in_hint

RUN = {"spec": {"image": "alpine", "command": ["sleep"], "name": "web"}, "start": True}
NDJSON = {"Accept": "application/x-ndjson"}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[FakeHouse]:
    async with FakeHouse(tmp_path) as made:
        yield made


@pytest.fixture
def app(house: FakeHouse) -> FastAPI:
    async def doctor() -> list[dict[str, Any]]:
        return [{"id": "kernel"}]

    return create_app(
        Services(
            paths=house.paths,
            instances=house.manager,
            images=house.images,  # type: ignore[arg-type]
            operations=house.operations,
            warnings=["careful"],
            doctor=doctor,
        )
    )


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as made:
        yield made


def problem(reply: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"code", "message", "hint", "exit_code", "details"}
    assert "\n" not in error["message"]
    return error


async def test_the_life_of_an_instance(client: httpx.AsyncClient, house: FakeHouse) -> None:
    made = await client.post("/v1/instances", json=RUN)
    assert made.status_code == 201
    assert made.json()["state"] == "running"
    key = made.json()["id"]
    for reference in ("web", key, key[:6]):
        assert (await client.get(f"/v1/instances/{reference}")).json()["name"] == "web"
    assert [item["name"] for item in (await client.get("/v1/instances")).json()] == ["web"]
    for verb, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopped")):
        reply = await client.post(f"/v1/instances/web/{verb}")
        assert (reply.status_code, reply.json()["state"]) == (200, state)
    assert (await client.get("/v1/instances")).json() == []
    assert len((await client.get("/v1/instances?all=true")).json()) == 1
    assert (await client.get("/v1/instances/web/wait")).json() == {"exit_code": 143}
    assert (await client.delete("/v1/instances/web")).status_code == 204
    assert house.left() == []


async def test_an_operation_as_lines(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/instances", json=RUN, headers=NDJSON)
    events = [json.loads(line) for line in reply.text.splitlines()]
    assert events[0]["type"] == "operation"
    assert events[-1]["type"] == "result"
    assert events[-1]["result"]["name"] == "web"
    titles = {event["step"]["title"] for event in events if event["type"] == "step"}
    assert titles == {"Starting web"}


async def test_a_failed_operation_as_lines(client: httpx.AsyncClient, house: FakeHouse) -> None:
    house.failing.names.add("create")
    reply = await client.post("/v1/instances", json=RUN, headers=NDJSON)
    last = json.loads(reply.text.splitlines()[-1])
    assert last["error"]["code"] == "runtime_failed"
    reply = await client.post("/v1/instances", json=RUN)
    assert reply.status_code == 500
    assert problem(reply)["code"] == "runtime_failed"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is missing"),
        (b"{", "not JSON"),
        (b"[]", "valid dictionary"),
        (b'{"spec": {"image": "a"}, "extra": 1}', "extra: there is no such field"),
        (b'{"spec": {"image": "a", "nmae": "x"}}', "spec.nmae"),
        (b'{"spec": {"image": "a", "name": "-rf"}}', "'-rf'"),
        (b'{"spec": {"image": "a", "name": "a/../b"}}', "'a/../b' cannot be a name"),
        (b'{"spec": {"image": "a", "hostname": "x\\ny"}}', "spec.hostname"),
        (b'{"spec": {"image": "a", "memory_bytes": 1}}', "spec.memory_bytes"),
        (b'{"spec": {"image": "a", "ports": [{"host_port": 99999, "guest_port": 1}]}}', "99999"),
        (b'{"spec": {"image": "a", "cpus": NaN}}', "spec.cpus"),
        (b'{"spec": {"image": "a", "restart": "sometimes"}}', "sometimes"),
        (b'{"spec": {"image": "a"}, "ticket": "../x"}', "ticket"),
        (b"[" * 200_000, "the body"),
    ],
)
async def test_bad_bodies_say_field_and_value(
    client: httpx.AsyncClient, house: FakeHouse, body: bytes, words: str
) -> None:
    headers = {"Content-Type": "application/json"}
    reply = await client.post("/v1/instances", content=body, headers=headers)
    assert reply.status_code == 400
    error = problem(reply)
    assert error["code"] == "invalid_input"
    assert words in error["message"] or words == "the body"
    assert len(error["message"]) < 600
    assert house.left() == []


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/instances/nosuch", 404, "not_found"),
        ("GET", "/v1/instances/%2e%2e%2fetc", 404, "not_found"),
        ("GET", "/v1/instances/%25';--", 404, "not_found"),
        ("GET", "/v1/images/nosuch", 404, "not_found"),
        ("GET", "/v1/nowhere", 404, "not_found"),
        ("PATCH", "/v1/instances", 405, "invalid_input"),
        ("GET", "/v1/operations/x", 404, "not_found"),
        ("POST", "/v1/instances/nosuch/start", 404, "not_found"),
        ("GET", "/v1/instances/nosuch/wait?condition=never", 400, "invalid_input"),
    ],
)
async def test_refusals(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    reply = await client.request(method, path)
    assert reply.status_code == status
    assert problem(reply)["code"] == code


@pytest.mark.parametrize("verb", ["start", "pause", "resume", "exec"])
async def test_illegal_states(client: httpx.AsyncClient, verb: str) -> None:
    await client.post("/v1/instances", json=RUN)
    if verb != "start":
        await client.post("/v1/instances/web/stop")
    body = {"command": ["ps"], "capture": True} if verb == "exec" else None
    reply = await client.post(f"/v1/instances/web/{verb}", json=body)
    assert reply.status_code == 409
    error = problem(reply)
    assert error["code"] == "illegal_state"
    assert verb in error["message"]
    assert "web" in error["hint"]


@pytest.mark.parametrize("excess", [0, 1])
async def test_the_body_limit_is_exact(client: httpx.AsyncClient, excess: int) -> None:
    filler = b'{"spec": {"image": "nosuch", "command": ["%s"]}}'
    body = filler % (b"x" * 100_000)
    body = body + b" " * (BODY_LIMIT_BYTES - len(body) + excess)

    async def pieces() -> AsyncIterator[bytes]:
        yield body[:1000]
        yield body[1000:]

    headers = {"Content-Type": "application/json"}
    for content in (body, pieces()):
        reply = await client.post("/v1/instances", content=content, headers=headers)
        assert reply.status_code == (400 if excess else 404)
        assert ("larger than 1 MiB" in problem(reply)["message"]) == bool(excess)


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
async def test_web_pages_are_refused(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    reply = await client.get("/v1/version", headers=headers)
    assert reply.status_code == 403
    assert problem(reply)["code"] == "forbidden"


async def test_version_and_openapi(client: httpx.AsyncClient) -> None:
    found = (await client.get("/v1/version")).json()
    assert found["warnings"] == ["careful"]
    assert found["api"] == 1
    schema = (await client.get("/openapi.json")).json()
    promised = """
        /v1/version /v1/doctor /v1/instances /v1/instances/{name} /v1/instances/{name}/start
        /v1/instances/{name}/stop /v1/instances/{name}/restart /v1/instances/{name}/kill
        /v1/instances/{name}/pause /v1/instances/{name}/resume /v1/instances/{name}/wait
        /v1/instances/{name}/exec /v1/instances/{name}/logs /v1/instances/{name}/archive
        /v1/images /v1/images/{name} /v1/images/build /v1/images/import
        /v1/images/{name}/verify
        /v1/operations /v1/operations/{operation_id}
    """
    assert set(promised.split()) <= set(schema["paths"])


async def test_a_bug_is_one_line_and_not_a_traceback(
    client: httpx.AsyncClient, house: FakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr(house.manager, "select", broken)
    reply = await client.get("/v1/instances")
    assert reply.status_code == 500
    assert problem(reply)["message"] == "unexpected ZeroDivisionError: one"


async def test_errors_keep_their_exit_code(client: httpx.AsyncClient, house: FakeHouse) -> None:
    reply = await client.get("/v1/instances/nosuch")
    assert problem(reply)["exit_code"] == TwofoldError.exit_code


async def test_limits_change_by_patch(client: httpx.AsyncClient, house: FakeHouse) -> None:
    await client.post("/v1/instances", json=RUN)
    changed = await client.patch("/v1/instances/web", json={"pids": 50, "cpus": None})
    assert changed.status_code == 200
    assert changed.json()["spec"]["pids"] == 50
    lines = await client.patch("/v1/instances/web", json={"pids": None}, headers=NDJSON)
    assert json.loads(lines.text.splitlines()[-1])["result"]["spec"]["pids"] is None
    for body, said in (
        ({}, "nothing to change"),
        ({"pids": 0}, "pids"),
        ({"image": "x"}, "no such field"),
        ({"restart": None}, "restart"),
    ):
        refused = await client.patch("/v1/instances/web", json=body)
        assert refused.status_code == 400
        assert said in problem(refused)["message"]


async def test_exposure_and_weakened_are_shown(client: httpx.AsyncClient) -> None:
    spec = {**RUN["spec"], "cap_add": ["net_raw"]}
    made = await client.post("/v1/instances", json={"spec": spec, "start": False})
    assert "NET_RAW" in made.json()["weakened"][0]
    found = (await client.get("/v1/instances/web/exposure")).json()
    assert found["barriers"][0]["topic"] == "weakened"
    assert {barrier["basis"] for barrier in found["barriers"]} <= {"verified", "planned"}


async def test_top_and_usage_are_of_what_runs(client: httpx.AsyncClient) -> None:
    await client.post("/v1/instances", json={**RUN, "start": False})
    assert (await client.get("/v1/usage")).json() == []
    for path in ("/v1/instances/web/processes", "/v1/usage?name=web"):
        refused = await client.get(path)
        assert refused.status_code == 409
        assert "it is created" in problem(refused)["message"]
    assert (await client.get("/v1/usage?name=none")).status_code == 404


async def test_the_shapes_of_the_new_verbs_are_published(client: httpx.AsyncClient) -> None:
    shapes = (await client.get("/openapi.json")).json()
    for name in ("InstanceChange", "Use", "ProcessInfo", "Exposure", "Barrier"):
        assert name in shapes["components"]["schemas"]
    assert "patch" in shapes["paths"]["/v1/instances/{name}"]


async def test_a_wrong_request_says_where_the_right_ones_are_described(
    client: httpx.AsyncClient,
) -> None:
    for method, path, body in (
        ("GET", "/v1/nothing", None),
        ("PUT", "/v1/version", None),
        ("POST", "/v1/instances", {"spec": {"image": 3}}),
    ):
        error = problem(await client.request(method, path, json=body))
        assert error["hint"] == "the shapes are in GET /openapi.json"
        assert error["details"] == {"shapes": "/openapi.json"}


async def test_what_cannot_be_a_name_is_told_in_words(client: httpx.AsyncClient) -> None:
    await client.post("/v1/instances", json=RUN)
    for path, body, hint in (
        ("/v1/instances", {"spec": {"image": "alpine", "name": "a b"}}, "--name a-b"),
        (
            "/v1/instances/web/snapshots",
            {"name": "before: it"},
            "twofold snapshot create web before-it",
        ),
        ("/v1/instances/web/fork", {"name": "../x"}, "--name x"),
    ):
        reply = await client.post(path, json=body)
        error = problem(reply)
        assert (reply.status_code, error["code"]) == (400, "invalid_input"), path
        assert "cannot be a name: it has 1 to 63 of the characters a-z" in error["message"]
        assert error["hint"] == hint


@pytest.mark.parametrize("name", ["", "web%2Fsnapshots%2Fsnap-1", "web%2fsnapshots", "%2F", "a%2F"])
async def test_a_name_does_not_choose_the_route(
    client: httpx.AsyncClient, house: FakeHouse, name: str
) -> None:
    await client.post("/v1/instances", json=RUN)
    await client.post("/v1/instances/web/stop")
    await client.post("/v1/instances/web/snapshots", json={"name": "snap-1"})
    for method, path in (
        ("GET", f"/v1/instances/{name}"),
        ("DELETE", f"/v1/instances/{name}"),
        ("POST", f"/v1/instances/{name}/stop"),
        ("DELETE", f"/v1/instances/web/snapshots/{name}"),
        ("DELETE", f"/v1/templates/{name}"),
    ):
        reply = await client.request(method, path)
        assert reply.status_code == (404 if "%" in path else 400), path
        assert ("it has a slash" if "%" in path else "is empty") in problem(reply)["message"]
    left = (await client.get("/v1/instances/web/snapshots")).json()
    assert [one["name"] for one in left] == ["snap-1"]


async def test_a_name_of_an_image_has_slashes(client: httpx.AsyncClient) -> None:
    reply = await client.get("/v1/images/docker.io%2Flibrary%2Fnosuch%3A1")
    assert (reply.status_code, problem(reply)["code"]) == (404, "not_found")
    assert "nosuch" in problem(reply)["message"]


async def test_a_hint_says_the_name_that_was_given(client: httpx.AsyncClient) -> None:
    """The rooms below know no names: theirs say NAME."""
    await client.post("/v1/instances", json=RUN)
    reply = await client.get("/v1/instances/web/snapshots/none")
    assert problem(reply)["hint"] == "twofold snapshot list web"
    reply = await client.post("/v1/instances/web/snapshots/none/restore", headers=NDJSON)
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert lines[0]["operation"]["subject"] == "web"
    assert lines[-1]["error"]["hint"] == "twofold snapshot list web"


async def test_a_hint_that_says_name_of_something_else_is_left_alone() -> None:
    error = TwofoldError("x", hint="twofold logs NAME; -e NAME=value; import x ANOTHER-NAME")
    name_in_hint(error, "web")
    assert error.hint == "twofold logs web; -e NAME=value; import x ANOTHER-NAME"


async def test_an_archive_that_fails_midway_breaks_off_with_one_line_in_the_log(
    client: httpx.AsyncClient,
    app: FastAPI,
    house: FakeHouse,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def archive(*_: Any) -> AsyncGenerator[bytes, None]:
        yield b"half"
        raise TwofoldError("the guest went away")

    await client.post("/v1/instances", json=RUN)
    monkeypatch.setattr(house.manager.sessions, "archive_out", archive)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(5)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/instances/web/archive",
        "raw_path": b"/v1/instances/web/archive",
        "query_string": b"path=/srv",
        "headers": [(b"host", b"twofold")],
        "http_version": "1.1",
    }
    with caplog.at_level("WARNING"):
        await app(scope, receive, send)
    assert [message.get("body") for message in sent] == [None, b"half"]
    assert sent[-1]["more_body"], "who reads it must not take it for the whole"
    assert [record.getMessage() for record in caplog.records] == [
        "a stream of application/x-tar breaks off: the guest went away"
    ]


async def test_the_sdk_plugs_and_unplugs(
    client: httpx.AsyncClient, house: FakeHouse, tmp_path: Path
) -> None:
    async with AsyncTwofold(str(tmp_path), launch=False) as sdk:
        await sdk._http.aclose()
        sdk._http = client
        box = await sdk.create("alpine", ["sleep"], name="web")
        seen = await box.plug(volume=Volume(source=str(tmp_path), target="/data", read_only=True))
        assert [(volume.target, volume.read_only) for volume in seen.spec.volumes] == [
            ("/data", True)
        ]
        with pytest.raises(Unsupported, match="is a container"):
            await box.plug(disk_bytes=1 << 30)
        with pytest.raises(InvalidInput, match="exactly one"):
            await box.plug()
        with pytest.raises(InvalidInput):
            await box.unplug(disk=-1)
        with pytest.raises(NotFound, match="there are: /data"):
            await box.unplug(volume="/other")
        assert (await box.unplug(volume="/data/")).spec.volumes == []
        assert box.data.spec.volumes == []
