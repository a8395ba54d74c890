"""What Flower runs at the server and at each site: the server asks, a site answers with its summary, a JSON file.

`python benchmarks/flower_summaries.py --help` says how it is run. What arrives is checked as far as it decides about
files; whether a summary can be true is asked by `selfsight curate --summaries`.
"""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

FORMAT, VERSION = "selfsight source summary", 1  # of docs/sources.md
MOST_BYTES = 64 << 20  # of a summary: some 40,000 classes
NAME = re.compile(r"\w[\w .-]{0,99}")  # of a source, as it becomes the name of a file


def keep(arrived: Mapping[str, object], into: Path) -> list[str]:
    """Write the summaries among what arrived, {site: bytes, or the error instead of them}, as files of the folder
    `into`; a sentence for each site. Two that give themselves one name are both left out: nobody knows which is it."""
    named, why = {}, {}
    for site, content in arrived.items():
        try:
            named[site] = source_of(content)
        except ValueError as error:
            why[site] = str(error)
    count = Counter(name.casefold() for name in named.values())
    for site, name in named.items():
        if count[name.casefold()] > 1:
            why[site] = f"another one calls itself {name!r} too"
        elif (into / f"{name}.json").exists():
            why[site] = f"{into / name}.json is there already. Take it away, or give another folder"
        else:
            write_whole(into / f"{name}.json", arrived[site])
    said = [
        f"Site {site} sent {len(arrived[site]):,} bytes: {name}.json" for site, name in named.items() if site not in why
    ]
    return said + [f"Site {site} is left out: {reason}." for site, reason in why.items()]


def source_of(content: object) -> str:
    """The name of the source that a summary is of. Raises `ValueError` for what is no summary that can be kept."""
    if not isinstance(content, bytes):
        raise ValueError(f"it sent no file ({str(content)[:200]!r})")
    if len(content) > MOST_BYTES:
        raise ValueError(f"it sent {len(content):,} bytes, and a summary has {MOST_BYTES:,} at most")
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("what it sent is not JSON") from None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise ValueError("what it sent is no summary of a source")
    if told.get("format_version") != VERSION:
        raise ValueError(f"its summary has version {str(told.get('format_version'))[:20]}, not {VERSION}")
    name = told.get("source")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"its source is called {str(name)[:100]!r}, which is no name of a file")
    return name


def write_whole(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    part.write_bytes(content)
    part.replace(file)


def wait(seconds: float, there: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not there() and time.monotonic() < until:
        time.sleep(0.5)


# -- what Flower runs, where it is installed --

if importlib.util.find_spec("flwr"):
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

    server = ServerApp()
    site = ClientApp()

    @site.query()
    def tell(message: Message, context: Context) -> Message:
        """Answer with the file that whoever started the site named; the question has no say in it."""
        record = ConfigRecord({"summary": Path(str(context.node_config["summary"])).read_bytes()})
        return Message(RecordDict({"told": record}), reply_to=message)

    @server.main()
    def gather(grid: Grid, context: Context) -> None:
        """Wait for the sites, ask each, and keep what arrives."""
        wanted, seconds = int(context.run_config["sites"]), float(context.run_config["seconds"])
        wait(seconds, lambda: len(list(grid.get_node_ids())) >= wanted)
        nodes = sorted(grid.get_node_ids())
        asked = [Message(RecordDict(), dst_node_id=node, message_type="query") for node in nodes]
        waiting = dict(zip(grid.push_messages(asked), map(str, nodes), strict=True))
        arrived: dict[str, object] = {}

        def all_told() -> bool:
            for number, node in list(waiting.items()):
                try:  # one by one, so that a reply that cannot be read is that of one site
                    for reply in grid.pull_messages([number]):
                        arrived[waiting.pop(number)] = answer(reply)
                except Exception as error:
                    waiting.pop(number, None)
                    arrived[node] = f"{type(error).__name__}: {error}"
            return not waiting

        wait(seconds, all_told)
        arrived |= dict.fromkeys(waiting.values(), "no answer in time")
        into = Path(str(context.run_config["into"]))
        said = [*keep(arrived, into), f"{len(nodes)} of {wanted} sites were there."]
        write_whole(into / "arrived.txt", "\n".join(said).encode())

    def answer(reply: Message) -> object:
        """The bytes that a site sent, or what it sent instead."""
        return reply.error.reason if reply.has_error() else reply.content["told"]["summary"]
