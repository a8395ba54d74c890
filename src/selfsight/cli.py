"""The verbs on the command line, generated from their signatures. Nothing is decided here."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import App, Parameter

from selfsight import __version__
from selfsight.errors import MachineError, SelfsightError, in_words
from selfsight.verbs import SHORT, VERBS, Verb, groups
from selfsight.verbs.arguments import hints_of, typed

app = App(
    name="selfsight",
    version=__version__,
    help="Self-supervised learning for machine vision: pretrain on images without labels, prove it worked, use it.",
    suppress_keyboard_interrupt=False,  # main() says what was saved
)
app.register_install_completion_command(help="Complete verbs and options in this shell from now on, and stop.")
JSON = Parameter(name="--json", negative="", help="Print one JSON object on stdout.")


def command(verb: Verb) -> Callable[..., None]:
    """A verb as cyclopts takes it: its own parameters and words, and `--json`."""
    module, function = verb.module, verb.function
    signature, hints = inspect.signature(function), hints_of(function)

    def run(*args: Any, json_: bool = False, **kwargs: Any) -> None:
        result = function(*args, **kwargs)
        if os.environ.get("RANK", "0") != "0":  # of several processes one speaks
            return
        if json_:
            print(json.dumps(result.to_dict()))
        else:
            module.show(result)

    parameters = []
    for name, parameter in signature.parameters.items():
        names = (f"--{name}", SHORT[name]) if name in SHORT else None
        settings = Parameter(name=names, negative_none=(), negative_iterable=())
        parameters.append(parameter.replace(annotation=Annotated[typed(hints[name]), settings]))
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters.append(inspect.Parameter("json_", kind, default=False, annotation=Annotated[bool, JSON]))
    run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = function.__doc__
    return run


for _name in VERBS:
    app.command(command(Verb(_name)), name=Verb(_name).words[-1])
for _group, _verbs in groups().items():
    _under = App(name=_group.replace("_", "-"), help=(sys.modules[f"selfsight.verbs.{_group}"].__doc__ or "").strip())
    for _verb in _verbs:
        _under.command(command(_verb), name=_verb.words[-1])
    app.command(_under)


def main() -> None:
    """Run the command line. An error is one sentence on stderr and the exit code of its kind."""
    try:
        app(result_action="return_value")
    except SelfsightError as error:
        print(f"selfsight: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as stop:
        print(f"selfsight: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"selfsight: {in_words(error)}", file=sys.stderr)
        sys.exit(MachineError.exit_code)


if __name__ == "__main__":
    main()
