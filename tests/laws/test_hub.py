"""Hub ids against a hub of our own on this machine: facts before any weight travels, then the model, then the model offline."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from tests.laws.test_models import SHAPES, built
from toolkit.models import load_tokenizer, save_model

SHA = "a" * 40


def handler(root: Path) -> type[BaseHTTPRequestHandler]:
    """What the hub's client asks of a hub: a model's list of files, and each file, whole or in part."""

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            info = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(/revision/\w+|/tree/\w+)?", path)
            file = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/\w+/([\w.-]+)", path)
            if info and (root / info[1]).is_dir():
                paths = sorted((root / info[1]).iterdir())
                tree = [{"type": "file", "path": one.name, "size": one.stat().st_size, "oid": SHA} for one in paths]
                about = {"id": info[1], "sha": SHA, "siblings": [{"rfilename": one.name} for one in paths], "tags": []}
                self.answer(200, json.dumps(tree if "/tree/" in path else about).encode())
            elif file and (root / file[1] / file[2]).is_file():
                self.answer(200, (root / file[1] / file[2]).read_bytes())
            else:
                code = "EntryNotFound" if file and (root / file[1]).is_dir() else "RepoNotFound"
                self.answer(404, b"{}", {"X-Error-Code": code})

        do_HEAD = do_GET

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            known = {"X-Repo-Commit": SHA, "ETag": f'"{sha256(body).hexdigest()}"', "Content-Type": "application/json"}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if wanted and status == 200:
                first, last = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
                known["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
                status, body = 206, body[first : last + 1]
            self.send_response(status)
            for name, value in (known | (headers or {}) | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A hub with a sound model, a pickled one, and one whose config is another's."""
    root = tmp_path / "hub"
    save_model(built(SHAPES["qwen2"]).bfloat16(), root / "me/sound", load_tokenizer("bytes"), max_shard_bytes=4096)
    save_model(built(SHAPES["llama"]), root / "me/mixed")
    (root / "me/mixed/config.json").write_text((root / "me/sound/config.json").read_text())
    (root / "me/pickled").mkdir()
    (root / "me/pickled/config.json").write_text((root / "me/mixed/config.json").read_text())
    torch.save({}, root / "me/pickled/pytorch_model.bin")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(root))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import json, sys
from pathlib import Path
from huggingface_hub.constants import HF_HUB_CACHE
from toolkit.models import inspect_model, inspect_tokenizer
found = {}
for name in sys.argv[1:]:
    try:
        facts = inspect_model(name)
        found[name] = [facts.kind, facts.family, facts.dtype, facts.num_parameters, facts.bytes_on_disk, facts.has_tokenizer]
    except ValueError as error:
        found[name] = str(error)
found["torch"] = "torch" in sys.modules
found["ids"] = inspect_tokenizer("me/sound")
from toolkit.models import load_model
found["weights"] = len(list(Path(HF_HUB_CACHE).rglob("*.safetensors")))
found["sum"] = sum(float(tensor.double().sum()) for tensor in load_model("me/sound", dtype="float64").state_dict().values())
print(json.dumps(found))
"""


def ask(home: Path, endpoint: str, *names: str) -> dict[str, object]:
    """Run the script with a hub cache of its own; without an endpoint, offline."""
    settings = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0" if endpoint else "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    settings |= {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"} if endpoint else {}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, *names], env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_hub_model_is_inspected_fetched_and_kept(hub, tmp_path):
    model = built(SHAPES["qwen2"]).bfloat16()
    tensors = model.state_dict().values()
    sizes = [sum(tensor.numel() for tensor in tensors), sum(tensor.nbytes for tensor in tensors)]
    facts = ["hub", "qwen2", "bfloat16", *sizes, True]
    online = ask(tmp_path / "home", hub, "me/sound", "me/mixed", "me/pickled", "me/absent")
    assert online.pop("me/mixed").startswith("me/mixed: config.json asks for the tensor model.layers.0.self_attn.q_proj.bias and")
    assert online.pop("me/pickled").startswith("me/pickled/pytorch_model.bin is a pickle, which can run code when read")
    assert re.fullmatch(r"the hub model 'me/absent' cannot be fetched \(.*\).*; 'smollm2-135m' works.*", online.pop("me/absent"))
    assert online.pop("weights") == 0  # none had travelled before the model was loaded
    want = {"me/sound": facts, "torch": False, "ids": 257, "sum": sum(float(tensor.double().sum()) for tensor in tensors)}
    assert online == want
    offline = ask(tmp_path / "home", "", "me/sound")
    assert offline.pop("weights") > 1
    assert offline == want
