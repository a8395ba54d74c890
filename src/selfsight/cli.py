"""The verbs on the command line, generated from their signatures. Nothing is decided here."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from selfsight import __version__
from selfsight.errors import MachineError, SelfsightError, first_line, in_words, meant
from selfsight.verbs import HEADINGS, MOST_TOGETHER, SHORT, VERBS, Verb, every_verb, groups
from selfsight.verbs.arguments import hints_of, kinds_of, refusal, typed

if TYPE_CHECKING:
    from cyclopts import Token
    from cyclopts.argument import Argument

ARGUMENTS, OPTIONS = Group("Arguments", sort_key=0), Group("Options", sort_key=99)
GROUPS = {title: Group(title, sort_key=place) for place, title in enumerate(HEADINGS, 1)}
app = App(
    name="selfsight",
    version=__version__,
    help="Self-supervised learning for machine vision: pretrain on images without labels, prove it worked, use it.",
    suppress_keyboard_interrupt=False,  # main() says what was saved
    exit_on_error=False,  # main() says what is wrong
    print_error=False,
    group_arguments=ARGUMENTS,
    group_parameters=OPTIONS,
)
app.register_install_completion_command(help="Complete verbs and options in this shell from now on, and stop.")
ADDED = {  # to the parameters of a verb: what the command line alone has
    "json": "Print one JSON object on stdout.",
    "yes": "Remove it without asking.",
}


def command(verb: Verb) -> Callable[..., None]:
    """A verb as cyclopts takes it: its own parameters and words, `--json`, and `--yes` if it removes something."""
    module, function = verb.module, verb.function
    removes: Callable[..., str] | None = getattr(module, "removes", None)

    def run(*args: Any, json_: bool = False, yes_: bool = False, **kwargs: Any) -> None:
        if removes is not None and not yes_ and (what := removes(*args, **kwargs)):
            confirm(what)
        result = function(*args, **kwargs)
        if os.environ.get("RANK", "0") != "0":  # of several processes one speaks
            return
        if json_:
            print(json.dumps(result.to_dict()))
        else:
            module.show(result)

    parameters = parameters_of(verb, removes is not None)
    run.__signature__ = inspect.signature(function).replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = function.__doc__
    return run


def parameters_of(verb: Verb, removes: bool) -> list[inspect.Parameter]:
    """Those of the verb and those that the command line adds, with what cyclopts wants to know of each."""
    parameters, hints = inspect.signature(verb.function).parameters.values(), hints_of(verb.function)
    named = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    titled = len(named) > MOST_TOGETHER
    found = []
    for p in parameters:
        names = (f"--{p.name}", SHORT[p.name]) if p.name in SHORT else None
        under = heading(p.name, titled) if p.name in named else ARGUMENTS
        hint = typed(hints[p.name])
        read = whole_number if int in kinds_of(hint) else None
        settings = Parameter(name=names, negative_none=(), negative_iterable=(), group=under, converter=read)
        found.append(p.replace(annotation=Annotated[hint, settings]))
    for name, words in ADDED.items():
        if name != "yes" or removes:
            settings = Parameter(name=f"--{name}", negative="", help=words, group=heading(name, titled))
            kind, annotation = inspect.Parameter.KEYWORD_ONLY, Annotated[bool, settings]
            found.append(inspect.Parameter(f"{name}_", kind, default=False, annotation=annotation))
    return found


def whole_number(kind: object, tokens: Sequence[Token]) -> int:
    """Text to a whole number: cyclopts would round 2.5."""
    return int(tokens[0].value)


def heading(option: str, titled: bool) -> Group:
    """Where an option stands in `--help`."""
    return next((GROUPS[title] for title, under in HEADINGS.items() if titled and option in under), OPTIONS)


def confirm(what: str) -> None:
    """Ask the person at the terminal whether to remove it. Raises `SelfsightError` unless the answer is yes, or where
    there is no terminal to ask on."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise SelfsightError(f"This would remove {what}. To do it, add --yes.")
    print(f"Remove {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise SelfsightError("Nothing was removed.")


def mistake(error: CycloptsError) -> str:
    """The sentence for a command line that is not understood."""
    chain = tuple(error.command_chain or ())
    way = f" Type {' '.join(('selfsight', *chain))} --help."
    if isinstance(error, UnknownCommandError):
        word = (error.unused_tokens or [""])[0]
        kind = "option" if word.startswith("-") else "verb"
        return f"There is no {kind} {word}.{meant(word, error.app or app)}{way}"
    if isinstance(error, UnknownOptionError):
        word = (error.token.keyword or error.token.value).partition("=")[0]
        names = [name for argument in error.argument_collection for name in argument.names]
        return f"There is no option {word}.{meant(word, names)}{way}"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return missing(error, chain)
    if isinstance(error, CoercionError) and error.argument is not None and error.token is not None:
        return refusal(error.token.keyword or _called(error.argument), error.argument.hint, error.token.value)
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given twice.{way}"
    if isinstance(error, UnusedCliTokensError):
        return f"{(error.unused_tokens or [''])[0]!r} is one word too many.{way}"
    return f"{first_line(error).rstrip('.')}.{way}"


def missing(error: MissingArgumentError, chain: tuple[str, ...]) -> str:
    """What is missing, what it is, and a command line that has it."""
    wanted = error.argument
    assert wanted is not None
    verb = app
    for word in chain:
        verb = verb[word]
    said = verb.assemble_argument_collection(parse_docstring=True)
    help = next((argument.parameter.help or "" for argument in said if argument.name == wanted.name), "")
    help = " ".join(help.split()).partition(". ")[0].rstrip(".")
    what = f"{error.keyword} needs a value" if error.keyword else f"{_called(wanted)} is missing"
    example = next((verb.example for verb in every_verb() if verb.words == chain), "selfsight --help")
    return f"{what}: {help[:1].lower()}{help[1:]}. For example: {example}"


def _called(argument: Argument) -> str:
    """SOURCE or --source."""
    return argument.name if argument.field_info.kind is inspect.Parameter.KEYWORD_ONLY else argument.name[2:].upper()


for _name in VERBS:
    app.command(command(Verb(_name)), name=Verb(_name).words[-1])
for _group, _verbs in groups().items():
    _words = (sys.modules[f"selfsight.verbs.{_group}"].__doc__ or "").strip()
    _under = App(_group.replace("_", "-"), help=_words, group_arguments=ARGUMENTS, group_parameters=OPTIONS)
    for _verb in _verbs:
        _under.command(command(_verb), name=_verb.words[-1])
    app.command(_under)


def main() -> None:
    """Run the command line. An error is one sentence on stderr and the exit code of its kind."""
    try:
        app(result_action="return_value")
    except CycloptsError as error:
        print(f"selfsight: {mistake(error)}", file=sys.stderr)
        sys.exit(SelfsightError.exit_code)
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
