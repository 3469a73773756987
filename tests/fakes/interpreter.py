"""Triton's interpreter without repeated work: half of the time of an interpreted kernel.

It replaces the functions of ``triton.language`` by its own when a kernel is launched, and again whenever a kernel calls
a function. Here each function has them replaced once per launch.
"""

from triton.runtime import interpreter


def patch_once_per_launch() -> None:
    replace, launch, done = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def replace_once(fn):
        if fn not in done:
            done.add(fn)
            return replace(fn)

    def launch_afresh(self, *args, **options):
        done.clear()
        launch(self, *args, **options)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = replace_once, launch_afresh
