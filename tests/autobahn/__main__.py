"""Run Autobahn's test suite against the native transport: `python -m tests.autobahn --python27 PYTHON`.

The suite (autobahntestsuite 25.10.1) needs Python 2.7; it is installed into `--folder`, and only once. Servers are
tested by its fuzzing client, our client by its fuzzing server. The summary goes to docs/reference/conformance.md; it is
an error if a case failed. All cases take an hour on two cores; `--cases 1.* 7.*` and `--agents client` run some of them
again, and leave what is known of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUMMARY = ROOT / "docs" / "reference" / "conformance.md"
AGENTS = {
    "server-poller": "server, behind one poller",
    "server-stream": "server, on a Trio stream",
    "client": "client",
}
# What the report calls a case that did not fail.
GOOD = ("OK", "NON-STRICT", "INFORMATIONAL")
GROUPS = {
    "1": "Framing",
    "2": "Pings and pongs",
    "3": "Reserved bits",
    "4": "Opcodes",
    "5": "Fragmentation",
    "6": "UTF-8",
    "7": "Closing",
    "9": "Limits and performance",
    "10": "Miscellaneous",
    "12": "permessage-deflate, payloads",
    "13": "permessage-deflate, parameters",
}

ALL_CASES = 517

Cases = Mapping[str, Mapping[str, str]]


def main() -> int:
    """Install what is missing, run both halves, write the summary."""
    parser = argparse.ArgumentParser(prog="python -m tests.autobahn", description=__doc__)
    parser.add_argument("--python27", default="python2.7", help="a Python 2.7 with pip")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "autobahn", help="for the suite and its reports"
    )
    parser.add_argument("--cases", nargs="+", default=["*"], help="patterns of case numbers")
    parser.add_argument("--agents", nargs="+", default=list(AGENTS), choices=list(AGENTS))
    options = parser.parse_args()
    folder: Path = options.folder
    wstest = install(options.python27, folder)
    if options.cases == ["*"]:
        for agent in options.agents:
            for old in report_files(folder, agent):
                old.unlink()
    servers = [agent for agent in options.agents if agent != "client"]
    if servers:
        test_servers(wstest, folder, options.cases, servers)
    if "client" in options.agents:
        test_client(wstest, folder, options.cases)
    results = {agent: read_reports(folder, agent) for agent in AGENTS}
    failed = [
        f"{agent} {case}: {result['behavior']}, closing {result['behaviorClose']}"
        for agent, cases in results.items()
        for case, result in sorted(cases.items(), key=lambda item: case_key(item[0]))
        if not is_good(result)
    ]
    say(*(f"{agent}: {counts(cases, None)}" for agent, cases in results.items()), *failed)
    if not failed and all(len(cases) == ALL_CASES for cases in results.values()):
        SUMMARY.write_text(summary(results), encoding="utf-8")
        say(f"wrote {SUMMARY.relative_to(ROOT)}; the full reports are in {folder}")
    return 1 if failed else 0


def say(*lines: str) -> None:
    """Write lines."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def install(python27: str, folder: Path) -> Path:
    """Make an environment of Python 2.7 with the suite in it; gives the path of its program."""
    wstest = folder / "python27" / "bin" / "wstest"
    if not wstest.exists():
        folder.mkdir(parents=True, exist_ok=True)
        tool = folder / "virtualenv"
        subprocess.run([python27, "-m", "pip", "install", "-q", f"--target={tool}", "virtualenv<20.22"], check=True)
        subprocess.run(
            [python27, "-m", "virtualenv", "-q", str(folder / "python27")],
            check=True,
            env={**os.environ, "PYTHONPATH": str(tool)},
        )
        subprocess.run([str(wstest.parent / "pip"), "install", "-q", "autobahntestsuite==25.10.1"], check=True)
    return wstest


def test_servers(wstest: Path, folder: Path, cases: Sequence[str], agents: Sequence[str]) -> None:
    """Let the fuzzing client loose on our servers."""
    ports = {agent: free_port() for agent in agents}
    programs = [
        start("tests.autobahn.echo_server", str(port), agent.removeprefix("server-")) for agent, port in ports.items()
    ]
    try:
        for port in ports.values():
            wait_for(port)
        spec: dict[str, object] = {
            "outdir": str(folder / "servers"),
            "servers": [{"agent": agent, "url": f"ws://127.0.0.1:{port}"} for agent, port in ports.items()],
            "cases": list(cases),
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        path = folder / "fuzzingclient.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        subprocess.run([str(wstest), "-m", "fuzzingclient", "-s", str(path)], check=True, cwd=folder)
    finally:
        for program in programs:
            program.terminate()
            program.wait()


def test_client(wstest: Path, folder: Path, cases: Sequence[str]) -> None:
    """Send our client through the fuzzing server."""
    port = free_port()
    spec: dict[str, object] = {
        "url": f"ws://127.0.0.1:{port}",
        "outdir": str(folder / "client"),
        "cases": list(cases),
        "exclude-cases": [],
        "exclude-agent-cases": {},
        "webport": 0,
    }
    path = folder / "fuzzingserver.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    server = subprocess.Popen([str(wstest), "-m", "fuzzingserver", "-w", str(free_port()), "-s", str(path)], cwd=folder)
    try:
        wait_for(port)
        client = start("tests.autobahn.echo_client", str(port), "client")
        if client.wait():
            raise SystemExit("the client failed")
    finally:
        server.terminate()
        server.wait()


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start one of our programs."""
    return subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait up to 20 seconds until somebody listens."""
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"nobody listens on port {port}")


def report_files(folder: Path, agent: str) -> list[Path]:
    """The suite's files, one for each case."""
    kind = "client" if agent == "client" else "servers"
    return list((folder / kind).glob(f"{agent.replace('-', '_')}_case_*.json"))


def read_reports(folder: Path, agent: str) -> Cases:
    """What came of each case, the last time that it was run."""
    found: dict[str, Mapping[str, str]] = {}
    for path in report_files(folder, agent):
        report = json.loads(path.read_text(encoding="utf-8"))
        found[report["id"]] = {key: report[key] for key in ("behavior", "behaviorClose")}
    return found


def is_good(result: Mapping[str, str]) -> bool:
    """Whether a case passed, its closing handshake too."""
    return result["behavior"] in GOOD and result["behaviorClose"] in GOOD


def case_key(case: str) -> tuple[int, ...]:
    """Sorts 1.2 before 1.10."""
    return tuple(map(int, case.split(".")))


def summary(results: Mapping[str, Cases]) -> str:
    """The page of the documentation."""
    lines = [
        "# Conformance",
        "",
        "[Autobahn's test suite](https://github.com/crossbario/autobahn-testsuite) 25.10.1 on the native transport,",
        f"all cases, on {platform.system()} with Python {platform.python_version()}. Written by",
        "`make autobahn PYTHON27=python2.7`, which fails if a case does.",
        "",
        f"| cases | {' | '.join(AGENTS[agent] for agent in results)} |",
        f"|---|{'---|' * len(results)}",
    ]
    for group, title in GROUPS.items():
        cells = [counts(cases, group) for cases in results.values()]
        lines.append(f"| {group}: {title} | {' | '.join(cells)} |")
    lines.append(f"| **all** | {' | '.join(counts(cases, None) for cases in results.values())} |")
    others = sorted(
        {
            (case_key(case), case, result["behavior"].lower())
            for cases in results.values()
            for case, result in cases.items()
            if result["behavior"] != "OK"
        }
    )
    lines += [
        "",
        "Non-strict: where a frame arrives in pieces, text in it that is not UTF-8 is refused when the frame is whole,",
        "not at the byte. Informational: the suite notes what was done, and passes no judgement.",
        "",
        "Cases that are not plainly ok: " + (", ".join(f"{case} {how}" for _, case, how in others) or "none") + ".",
        "",
    ]
    return "\n".join(lines)


def counts(cases: Cases, group: str | None) -> str:
    """For example "24 ok, 2 non-strict"."""
    found = Counter(
        result["behavior"].lower() if is_good(result) else "failed"
        for case, result in cases.items()
        if group is None or case.split(".")[0] == group
    )
    return ", ".join(f"{number} {behaviour}" for behaviour, number in found.most_common()) or "none"


if __name__ == "__main__":
    sys.exit(main())
