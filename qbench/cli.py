"""The command ``qbench``."""

import gc
import os
import signal
import sys
import warnings
from importlib import import_module
from importlib.metadata import version

from qbench import signals
from qbench.files import packaged

MODULES = ("plan", "fetch", "records", "export", "report")  # with a main of their own
COMPLETION = ("-sc", "--shell-completion")
PRINTING = {*COMPLETION, "-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info"}  # measure nothing

HELP = """\
qbench: post-training quantization of Qwen3, measured.

  qbench run [GROUP=CHOICE | GROUP.FIELD=VALUE ...]      quantize and evaluate one model
  qbench run -m GROUP=A,B,C ...                          the same for every combination
  qbench run --help                                      all groups, choices and fields
  qbench plan experiment=table3 ...                      what a sweep would measure, what has records, what it costs
  qbench fetch experiment=table3 ...                     download its models and data, for machines without a network
  qbench export method=gptq format=awq out=FOLDER ...    write a quantized model for other engines
  qbench records [FOLDER] [ID | FILTER=VALUE ...]        list records; show one and the command that measures it again
  qbench report [FOLDER]                                 tables and figures from the records, with the paper's numbers
  qbench --version

First steps, with models that are inside the package (no network, no GPU):

  qbench run model=nano-s method=gptq grid.bits=3
  qbench run -m model=nano-s method=none,rtn,gptq,awq grid.bits=4,3,2 eval=study
  qbench report

The same with a real model from the Hub: model=qwen3-0.6b instead of nano-s.
Records go to ./runs (machine.results_dir=...). Existing records are not measured again.
Tab completion in bash: eval "$(qbench -sc install=bash)"

Exit codes: 0  done    1  something failed or was refused    2  the command line cannot be read
            3  nothing failed, but another process is measuring some of the cells
            130, 143  stopped by Ctrl-C or SIGTERM; the same command continues where it stopped
"""


def main() -> None:
    command, rest = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # without a line of source code
    signals.end_at_once()
    gc.disable()
    if command not in ("run", "fetch", "export") or PRINTING & set(rest):  # the others may end in silence at `| head`
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        code = _command(command, rest)
        sys.stdout.flush()
    except SystemExit as e:
        if e.code in {128 + number for number in signals.ENDING}:
            print(f"qbench {command}: stopped; the same command starts again", file=sys.stderr)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _end_of_imports() -> None:
    """From now on a signal raises an exception, and garbage is collected: imports leave none, and looking for it would
    take a third of their time."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    signals.end_by_exception()


def _command(command: str, rest: list[str]) -> int:
    if {*COMPLETION} & {command, *rest}:
        os.environ["COMP_LINE"] = os.environ.get("COMP_LINE", "").replace(" run ", " ", 1)
        _hydra([word for word in (command, *rest) if word != "run"], "qbench")  # Hydra expects a command of one word
        return 0
    if command == "run":
        return _run(rest)
    if command in MODULES:
        main = import_module(f"qbench.{command}").main
        _end_of_imports()
        return main(rest)
    if command in ("-h", "--help", "help", "--version"):
        print(HELP if command != "--version" else f"qbench {version('qbench')}")
        return 0
    print(f"qbench: unknown command {command!r}; see qbench --help", file=sys.stderr)
    return 2


def _run(args: list[str]) -> int:
    """One run or a sweep through Hydra; the exit code, see HELP."""
    from qbench.outcomes import Outcomes, exit_code, summary

    code = 0
    try:
        _hydra(args if PRINTING & set(args) else _prepared(args))
    except ValueError as e:
        print(f"qbench run: {e}", file=sys.stderr)
        return 2
    except SystemExit as e:  # Hydra's, a signal's, or a stop at the first failure
        code = e.code if isinstance(e.code, int) else 1
        if isinstance(e.code, str):
            print(f"qbench run: {e.code}", file=sys.stderr)
    if code == 1 and Outcomes.here is None:  # Hydra could not compose a configuration
        return 2
    ended = Outcomes.here.collected() if Outcomes.here else []
    if code in {128 + number for number in signals.ENDING}:
        done = sum(o.status in ("measured", "present") for o in ended)
        name = signal.Signals(code - 128).name
        kept = f"stopped by {name} after {done} finished cells: records and quantized blocks are kept"
        print(f"{kept}, and the same command continues from there", file=sys.stderr)
    elif Outcomes.here and Outcomes.here.folder:
        print(summary(ended))
    return code or exit_code(ended)


def _hydra(args: list[str], program: str = "qbench run") -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import hydra

    @hydra.main(version_base="1.3", config_path=str(packaged("conf")), config_name="config")
    def job(cfg):  # a launcher may run it in another process, so it uses nothing from outside
        import torch

        if not torch.cuda.is_available():  # kernels run in Triton's interpreter; Triton reads this when it is imported
            os.environ.setdefault("TRITON_INTERPRET", "1")
        from qbench.run import run

        _end_of_imports()
        return run(cfg)

    sys.argv = [program, *args]
    job()


def _prepared(args: list[str]) -> list[str]:
    """The arguments with checked overrides; Hydra's own flags stay as they are."""
    from qbench.overrides import prepared

    words = [word for word in args if "=" in word and not word.startswith("-")]
    ready = dict(zip(words, prepared(words)))
    return [ready.get(word, word) for word in args]


if __name__ == "__main__":
    main()
