"""A run folder whose every text is an attack: what any view of it must show as text."""

from pathlib import Path

from tests.browser import toy
from toolkit.runs import EventWriter, send
from toolkit.runs.control import begin_attempt
from toolkit.runs.files import replace_json


def make_hostile(folder: Path) -> None:
    """A failed run whose every text is an attack, and whose numbers are none."""
    events = toy.make_folder(folder)
    recipe = {"type": "<i>X</i>", "model": f"<b>{folder.name}</b>", "</td>": {"<script>": folder.name}}
    replace_json(folder / "recipe.json", recipe)
    replace_json(folder / "launch.json", {"processes": 2, "on": "<b>", "restart": "os:system"})
    log = "<script>window.hacked = 1</script> \x1b[31mred\x1b[0m\n"
    (folder / "rank-0.log").write_bytes(b"y" * 10_000_000 + b"\n\xff\x00\x1b]8;;https://evil.example\x07\n" + log.encode())
    names = ("<img src=x onerror=window.hacked=1>", "__proto__", "constructor", "../../etc/passwd", "\x1b[31mred\u202e", "loss")
    values = (float("nan"), float("inf"), -1e308, 1e308, 5e-324, 0.0)
    for step in range(1, 40):
        events.write("metrics", {name: values[(step + at) % len(values)] for at, name in enumerate(names)}, step=step)
    sample = "<script>window.hacked = 1</script> \x1b[31mred\x1b[0m \u202eevil.txt\x00\x07 " + "wide " * 50_000
    events.write("sample", {"prompt": "<svg onload=window.hacked=1>", "text": sample[:300]}, step=39)
    events.write("command", {"n": 1, "command": "set", "name": "<u>lr</u>", "value": "</script>", "applied": 20}, step=20)
    EventWriter(folder, 1, 1).write("metrics", {"step_seconds": float("nan"), "memory_bytes": -1e308}, step=1)
    wrong = ('"x"', "metrics", '{"loss":1}'), ("NaN", "metrics", '{"loss":[1]}'), ("1", "command", '{"n":[1],"applied":{}}')
    with open(folder / "events-0.jsonl", "a") as file:
        for at, (moment, kind, data) in enumerate(wrong):
            line = f'"seq":{1000 + at},"time":{moment},"attempt":1,"rank":0,"step":39,"kind":"{kind}","data":{data}'
            file.write(f"{{{line}}}\n")
    begin_attempt(folder, 1)
    send(folder, "set", name="<u>lr</u>", value="</script>\x1b[31m")
    toy.make_checkpoint(folder, 20, float("nan"))
    report = {
        "rank": 0,
        "error": "<b>ValueError</b>\x1b[0m",
        "likely": "<i>nothing</i>",
        "remedy": "<a href='javascript:window.hacked=1'>click</a>",
        "traceback": "Traceback\n" + "x" * 1_000_000 + "\n<script>window.hacked = 1</script>",
        "tails": {"0": "\x1b]8;;https://evil.example\x07link\x1b]8;;\x07\n" + "y" * 10_000_000, "<b>": "z"},
    }
    toy.end(folder, "failed", 39, report=report, message="rank 0: <b>ValueError</b>")
