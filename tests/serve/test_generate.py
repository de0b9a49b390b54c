"""``POST /generate`` gives what ComfyUI itself gives, to every kind of client, and errors that name what is wrong."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import re
import socket
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from PIL import Image, ImageChops

from tests.serve.running import FIXTURE_PACK, Engine, Service, ask_directly, serving, wait_for, write_app
from tests.serve.workflows import EVERYTHING_INPUTS, everything, picture, upscale


def opened(response: requests.Response) -> Image.Image:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(response.content))


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.mode == other.mode and not ImageChops.difference(one, other).getbbox()


def unzipped(response: requests.Response) -> dict[str, bytes]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_pixels_are_those_that_comfyui_gives_when_asked_directly(service: Service) -> None:
    photo = picture((10, 200, 90))
    prompt = everything()
    prompt["1"]["inputs"]["image"] = "DIRECT_IMAGE"
    prompt["2"]["inputs"]["value"] = 96
    prompt["3"]["inputs"]["input"] = "bicubic"
    for unused in ("11", "13"):
        del prompt[unused]
    (direct,) = ask_directly(service.comfyui, prompt, image=photo)
    answer = service.generate(accept="image/png", size=96, method="bicubic", files={"photo": ("x.png", photo)})
    assert same_pixels(opened(answer), direct)
    assert direct.size == (96, 96)


def test_several_outputs_come_in_a_zip_under_their_names(service: Service) -> None:
    found = unzipped(service.generate(caption="a title"))
    assert set(found) == {"picture.png", "note.txt", "copied.txt"}
    assert found["note.txt"] == b"a title"
    assert found["copied.txt"] == b"some notes\n"


def test_the_accept_header_chooses_one_of_several_outputs(service: Service) -> None:
    assert opened(service.generate(accept="image/png")).size == (64, 64)
    text = service.generate(accept="text/plain", caption="only this")
    assert text.headers["content-type"].startswith("text/plain")
    assert text.text == "only this"
    unzipped(service.generate(accept="application/zip"))
    unzipped(service.generate(accept="text/html, */*"))


def test_a_parameter_out_of_bounds_is_refused_by_name(service: Service) -> None:
    answer = service.generate(size=9999)
    assert answer.status_code == 400
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == ["size"]
    assert "512" in problem["msg"]


def test_an_unknown_parameter_and_an_unknown_choice_are_refused_by_name(service: Service) -> None:
    answer = service.generate(sise=64, method="magic")
    assert answer.status_code == 400
    assert {tuple(problem["loc"]) for problem in answer.json()["detail"]} == {("sise",), ("method",)}
    assert "sise: There is no such parameter; there are: photo, size, method" in answer.json()["error"]
    assert not service.leftovers()


def test_text_for_a_file_is_refused_with_how_to_send_one(service: Service) -> None:
    for value in ("/etc/passwd", "example.png", "../input/notes.txt", "example.png [output]", "file:///etc/passwd"):
        answer = service.generate(photo=value)
        assert answer.status_code == 400
        assert "curl -F photo=@FILE" in answer.text


def test_a_body_that_cannot_be_read_is_the_callers_fault(service: Service) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for body, headers in (
        (b"{", {"Content-Type": "application/json"}),
        (b"[]", {"Content-Type": "application/json"}),
        (b'{"seconds": NaN}', {"Content-Type": "application/json"}),
        (b'{"seconds": 1e999}', {"Content-Type": "application/json"}),
        (b"\xff\xfe", {}),
        (b"garbage", form),
        (b"--x\r\n\r\n--x--", form),
        (b"a=b", {"Content-Type": "multipart/form-data"}),
    ):
        answer = requests.post(f"{service.url}/generate", data=body, headers=headers, timeout=60)
        assert answer.status_code == 400, (body, answer.text)
    assert not service.leftovers()


def test_what_is_refused_leaves_no_traceback_and_no_value_of_the_callers_in_the_log(service: Service) -> None:
    before = len(service.log)
    answer = service.generate(size="a secret", caption="another")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("size: ")
    requests.post(f"{service.url}/generate", json={"photo": "http://intern.example/secret"}, timeout=60)
    cut_off = socket.create_connection((urlsplit(service.url).hostname, urlsplit(service.url).port))
    cut_off.sendall(
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b'Content-Length: 1000\r\n\r\n--x\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n'
    )
    cut_off.close()
    wait_for(lambda: "(status=499," in service.log[before:], "the log to have the last one")
    assert "Traceback" not in service.log[before:]
    assert "secret" not in service.log[before:]


def test_half_a_character_is_the_callers_fault(service: Service) -> None:
    for body in (rb'{"caption": "\ud83d"}', rb'{"\uDE00": 1}', rb'{"fail": {"a": ["\ud83d"]}}'):
        answer = requests.post(
            f"{service.url}/generate", data=body, headers={"Content-Type": "application/json"}, timeout=60
        )
        assert answer.status_code == 400, answer.text
        assert "half a character" in answer.text
    whole = rb'{"caption": "\ud83d\ude00"}'
    headers = {"Content-Type": "application/json", "Accept": "text/plain"}
    answer = requests.post(f"{service.url}/generate", data=whole, headers=headers, timeout=60)
    assert answer.content.decode() == "\N{GRINNING FACE}"


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/json", "x-www-form-urlencoded"])
def test_a_request_beyond_the_limit_is_refused_before_it_is_stored(
    announced: bool, kind: str, service: Service, tmp_path: Path
) -> None:
    app = write_app(tmp_path / "app", everything(), inputs=EVERYTHING_INPUTS)
    head = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n'
    with serving(app, tmp_path, COMFYUI_SERVER=service.comfyui, CPACK_MAX_UPLOAD_MIB="1") as small:
        where = urlsplit(small.url)
        connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=60)
        connection.putrequest("POST", "/generate")
        connection.putheader("Content-Type", kind if "/" in kind else f"application/{kind}")
        if announced:
            connection.putheader("Content-Length", str(64 << 20))
            connection.endheaders()
            connection.send(head)
        else:
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
            block = b"A" * (1 << 16)
            with contextlib.suppress(ConnectionError):  # it need not listen to the end
                for part in (head, *[block] * 17):
                    connection.send(b"%x\r\n%s\r\n" % (len(part), part))
        answer = connection.getresponse()
        assert answer.status == 413
        assert b"larger than 1 MiB (CPACK_MAX_UPLOAD_MIB)" in answer.read()
        connection.close()
        assert not small.leftovers()


def test_a_json_body_and_a_data_url_do_as_a_form_does(service: Service) -> None:
    photo = picture((1, 2, 250))
    form = service.generate(accept="image/png", size=32, files={"photo": ("x.png", photo)})
    url = "data:image/png;base64," + base64.b64encode(photo).decode()
    headers = {"Accept": "image/png"}
    body = requests.post(f"{service.url}/generate", json={"size": 32, "photo": url}, headers=headers, timeout=60)
    assert same_pixels(opened(form), opened(body))


def test_text_stays_text(service: Service) -> None:
    for text in ("123", "true", "1e3", "null", '{"a": 1}', "grüße 名前", "a\nb", ""):
        found = service.generate(accept="text/plain", caption=text)
        assert found.content.decode() == text


def test_bentomls_own_client_works(service: Service, tmp_path: Path) -> None:
    photo = tmp_path / "my photo [x].png"
    photo.write_bytes(picture())
    script = (
        "import bentoml, pathlib, shutil, sys\n"
        "with bentoml.SyncHTTPClient(sys.argv[1]) as client:\n"
        "    answer = client.generate(photo=pathlib.Path(sys.argv[2]), size=48, caption='quoted')\n"
        "    shutil.copy(answer, sys.argv[3])\n"
    )
    subprocess.run([sys.executable, "-c", script, service.url, photo, tmp_path / "answer"], check=True)
    with zipfile.ZipFile(tmp_path / "answer") as archive:
        assert Image.open(archive.open("picture.png")).size == (48, 48)
        assert archive.read("note.txt") == b"quoted"


def test_callers_with_equal_file_names_get_their_own_results(service: Service) -> None:
    colours = [(40 * number, 250 - 40 * number, 120) for number in range(6)]

    def ask(colour: tuple[int, int, int]) -> Image.Image:
        files = {"photo": ("same.png", picture(colour)), "attachment": ("same.txt", str(colour).encode())}
        found = unzipped(service.generate(files=files, size=40))
        assert found["copied.txt"].decode() == str(colour)
        return Image.open(io.BytesIO(found["picture.png"]))

    alone = [ask(colour) for colour in colours]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(ask, colours))
    for one, other in zip(alone, together, strict=True):
        assert same_pixels(one, other)
    assert not same_pixels(alone[0], alone[1])


def test_equal_requests_at_once_share_an_upload_and_all_succeed(service: Service) -> None:
    photo = picture((9, 9, 9))
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: service.generate(files={"photo": ("x.png", photo)}), range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6


def test_the_same_bytes_under_other_names_do_not_share_a_place_that_is_removed(service: Service) -> None:
    data, places = picture((10, 20, 30)), set()
    inputs = service.data / "input" / "cpack"

    def ask(name: str) -> None:
        assert service.generate(files={"photo": (name, data)}, seconds=0.5, size=29).status_code == 200

    threads = [threading.Thread(target=ask, args=(f"{number}.png",)) for number in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with contextlib.suppress(FileNotFoundError):  # a folder that is listed may be removed at that moment
            places |= {(path.parent.name, path.name) for path in inputs.glob("*/*.png")}
    assert {name for _, name in places} == {"0.png", "1.png"}
    assert len({folder for folder, _ in places}) == 2


def test_nothing_of_a_request_is_left(service: Service) -> None:
    service.generate(files={"photo": ("x.png", picture()), "attachment": ("a.txt", b"a")})
    service.generate(files={"photo": ("x.png", b"no picture")})
    service.generate(fail="true")
    wait_for(lambda: not service.leftovers(), f"the files of requests to be removed: {service.leftovers()}")
    assert requests.get(f"{service.comfyui}/queue", timeout=60).json()["queue_pending"] == []


def test_a_failing_node_is_named_without_the_images_inside(service: Service) -> None:
    answer = service.generate(fail="true")
    assert answer.status_code == 500
    body = answer.json()
    assert body["error"].startswith("The node 'Fail on request' (StandinFail): no luck in")
    assert body["node"]["class"] == "StandinFail"
    assert body["parameters"] == ["fail"]
    for inside in ("/app", "Traceback", 'File "', str(service.data)):
        assert inside not in answer.text
    assert service.generate().status_code == 200


def test_a_file_that_is_no_picture_fails_by_the_parameter_it_came_with(service: Service) -> None:
    answer = service.generate(files={"photo": ("x.png", b"no picture")})
    assert answer.status_code == 422
    assert answer.json()["node"]["title"] == "photo"
    assert answer.json()["parameters"] == ["photo"]
    assert str(service.data) not in answer.text


def test_the_request_of_a_caller_who_went_away_is_taken_back(service: Service) -> None:
    where = urlsplit(service.url)
    body = json.dumps({"seconds": 500, "size": 17}).encode()

    def queue() -> dict[str, Any]:
        return dict(requests.get(f"{service.comfyui}/queue", timeout=60).json())

    sockets = []
    for _ in range(2):  # one runs, one waits
        connection = socket.create_connection((where.hostname, where.port))
        head = (
            f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        connection.sendall(f"{head}\r\n".encode() + body)
        sockets.append(connection)
    wait_for(lambda: queue()["queue_running"] and queue()["queue_pending"], "both to be queued")
    for connection in sockets:
        connection.close()
    wait_for(lambda: not queue()["queue_running"] and not queue()["queue_pending"], "both to be taken back")
    assert service.generate(accept="image/png").status_code == 200


def test_many_at_once_are_all_answered(service: Service) -> None:
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(service.generate().status_code)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 12


def test_the_documents_tell_the_interface(service: Service) -> None:
    assert service.get("/workflow.json").json() == everything()
    assert service.get("/comfy/workflow.json").json() == everything()
    route, task = service.get("/schema.json").json()["routes"]
    assert (route["name"], task["name"], task["is_task"]) == ("generate", "generate_task", True)
    size = route["input"]["properties"]["size"]
    assert (size["minimum"], size["maximum"], size["default"]) == (16, 512, 64)
    assert route["input"]["properties"]["photo"]["type"] == "file"
    assert "required" not in route["input"]  # the pack ships the defaults of both files
    request = service.get("/docs.json").json()["paths"]["/generate"]["post"]["requestBody"]["content"]
    properties = request["multipart/form-data"]["schema"]["properties"]
    assert properties["size"]["maximum"] == 512
    assert properties["method"]["enum"][0] == "nearest-exact"
    for path in ("/livez", "/readyz", "/healthz", "/metrics"):
        assert service.get(path).status_code == 200


def test_the_page_for_people_loads_nothing_from_elsewhere(service: Service) -> None:
    page = service.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    found = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
    assert found
    for path in found:
        assert service.get(f"/{path}").status_code == 200


def test_a_required_file_is_asked_for_by_name_and_one_output_comes_as_it_is(
    engine: Engine, service: Service, tmp_path: Path
) -> None:
    app = write_app(tmp_path / "app", upscale())
    # Attached to the ComfyUI that the other service started: that mode is tested, too.
    with serving(app, tmp_path, COMFYUI_SERVER=service.comfyui) as attached:
        answer = attached.generate()
        assert answer.status_code == 400
        assert answer.json()["detail"][0]["loc"] == ["photo"]
        if not engine.has_model:
            pytest.skip("needs shared/fixtures, whose model ComfyUI can load")
        photo = picture()
        prompt = upscale(output="SaveImage")
        prompt["1"]["inputs"]["image"] = "DIRECT_IMAGE"
        (direct,) = ask_directly(service.comfyui, prompt, image=photo)
        for accept in ("*/*", "application/json"):
            answer = attached.generate(accept=accept, files={"photo": ("x.png", photo)})
            assert answer.headers["content-disposition"] == 'inline; filename="picture.png"'
            assert same_pixels(opened(answer), direct)
        assert direct.size == (160, 120)


def test_the_pack_that_comfy_pack_wrote_gives_the_pixels_that_comfyui_gives(
    engine: Engine, service: Service, tmp_path: Path
) -> None:
    if not engine.has_model or not FIXTURE_PACK.is_file():
        pytest.skip("needs shared/fixtures/upscale.cpack.zip and its model")
    with zipfile.ZipFile(FIXTURE_PACK) as pack:
        workflow = json.loads(pack.read("workflow_api.json"))
        names = [name for name in pack.namelist() if name.startswith("input/")]
        inputs = {name.removeprefix("input/"): pack.read(name) for name in names}
    app = write_app(tmp_path / "app", workflow, inputs=inputs)
    photo = picture((250, 130, 10), (100, 70))
    prompt = json.loads(json.dumps(workflow))
    prompt["1"]["inputs"]["image"] = "DIRECT_IMAGE"
    prompt["4"]["inputs"]["value"] = 48
    for unused in ("9", "12"):
        del prompt[unused]
    (direct,) = ask_directly(service.comfyui, prompt, image=photo)
    with serving(app, tmp_path, COMFYUI_SERVER=service.comfyui) as attached:
        files = {"photo": ("x.png", photo)}
        answer = attached.generate(size=48, files=files)
        found = unzipped(answer)
        assert set(found) == {"picture.png", "note.txt", "copied.txt"}
        assert same_pixels(Image.open(io.BytesIO(found["picture.png"])), direct)
        assert direct.size == (192, 192)


def test_a_missing_model_is_named_with_its_node(service: Service, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", upscale("not_there.safetensors"))
    with serving(app, tmp_path, COMFYUI_SERVER=service.comfyui) as attached:
        answer = attached.generate(files={"photo": ("x.png", picture())})
        assert answer.status_code == 500  # no fault of the caller's
        assert answer.json()["node"]["title"] == "Load Upscale Model"
        assert "not_there.safetensors" in answer.json()["error"]


def test_a_node_that_comfyui_lacks_is_told_in_the_log_and_the_answer(service: Service, tmp_path: Path) -> None:
    workflow = upscale()
    workflow["3"]["class_type"] = "NoSuchNode"
    app = write_app(tmp_path / "app", workflow)
    with serving(app, tmp_path, COMFYUI_SERVER=service.comfyui) as attached:
        wait_for(lambda: "does not know these nodes of the workflow: NoSuchNode" in attached.log, "the log to tell")
        answer = attached.generate(files={"photo": ("x.png", picture())})
        assert answer.status_code == 500
        assert "NoSuchNode" in answer.json()["error"]


def test_parameters_may_be_called_anything(service: Service, tmp_path: Path) -> None:
    names = ["class", "_x", "model_config", "self", "ctx", "名前", "input_0", "request"]
    workflow = {}
    for number, name in enumerate(names):
        value, text = f"{number}0", f"{number}1"
        workflow[value] = {"class_type": "CPackInputString", "inputs": {"value": name}, "_meta": {"title": name}}
        workflow[text] = {
            "class_type": "CPackOutputTextFile",
            "inputs": {"text": [value, 0], "filename_prefix": "p", "file_extension": ".txt"},
            "_meta": {"title": name},
        }
    app = write_app(tmp_path / "app", workflow)
    with serving(app, tmp_path, COMFYUI_SERVER=service.comfyui) as attached:
        found = unzipped(attached.generate(**{name: f"value of {name}" for name in names}))
        assert {name.removesuffix(".txt"): data.decode() for name, data in found.items()} == {
            name: f"value of {name}" for name in names
        }
