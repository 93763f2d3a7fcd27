"""`make mutations`: put one fault at a time into a copy of the code, and check that the tests find it.

A table, not a tool: each fault is one text of one file replaced by another, with the test files that have to fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "assets", "runs", "docs")


class Mutation(NamedTuple):
    """One fault: `old`, which stands in `file` exactly once, becomes `new`, and one of `tests` has to fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


SAMPLER_TESTS = ("unit/test_samplers.py", "parity/test_samplers.py")
SAMPLERS, LEVELS, SCHEDULE = (f"stable_diffusion/{name}.py" for name in ("samplers", "levels", "schedule"))
ENGINE, PREVIEWS = "stable_diffusion/batching/engine.py", "stable_diffusion/batching/preview_worker.py"
PACKED, BACKEND = "stable_diffusion/compute/packed.py", "ui/runs/backend.py"

MUTATIONS = [
    Mutation(SAMPLERS, "max(0.0, there.sigma**2 - std**2)", "there.sigma**2", SAMPLER_TESTS),
    Mutation(SAMPLERS, "x_0_there = (yield x, there).clamp(-clip, clip)", "x_0_there = yield x, there", SAMPLER_TESTS),
    Mutation(SAMPLERS, 'settings["lower_order_final"] and n < 15', 'settings["lower_order_final"]', SAMPLER_TESTS),
    Mutation(SAMPLERS, "mean = 1 / reach - 1 / (speed * h)", "mean = 1 / reach - 1 / h", SAMPLER_TESTS),
    Mutation(SAMPLERS, "sigma_data = 0.5", "sigma_data = 0.6", SAMPLER_TESTS),
    Mutation(LEVELS, "CLEAN if schedule.config.set_alpha_to_one else schedule.level(0)", "CLEAN", SAMPLER_TESTS),
    Mutation(LEVELS, "(schedule.config, rescale_betas_zero_snr=False)", "(schedule.config)", SAMPLER_TESTS),
    Mutation(LEVELS, "levels[-1] if spaced is not None else schedule.level(0)", "schedule.level(0)", SAMPLER_TESTS),
    Mutation(LEVELS, '("use_karras_sigmas", "use_lu_lambdas")', '("use_karras_sigmas",)', SAMPLER_TESTS),
    Mutation(SCHEDULE, "betas = _betas(self.config, torch.float32)", "betas = _betas(self.config)", SAMPLER_TESTS),
    Mutation(SCHEDULE, "prediction * (sigma / power**0.5)", "prediction * (sigma / power)", SAMPLER_TESTS),
    Mutation(SCHEDULE, "default if self.config.timestep_spacing is None else", "", SAMPLER_TESTS),
    Mutation(ENGINE, "// (4 if more_come else 1)", "", ("unit/test_engine.py",)),
    Mutation(ENGINE, "* (0.5 if rows else 1.0)", "", ("unit/test_engine.py",)),
    Mutation(PREVIEWS, "min(self._credit, 0.0) +", "self._credit +", ("unit/test_engine.py",)),
    Mutation(PACKED, "x.dtype == torch.bfloat16 and small", "False", ("unit/test_inference.py",)),
    Mutation(BACKEND, "len(self._parked) > PARKED_RUNS", "False", ("unit/test_limits.py",)),
]


def outcome(mutation: Mutation, folder: Path) -> str:
    """Apply one fault in `folder`, run its tests there, and take it back: "caught", or the reason why it is not."""
    path = folder / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        return f"stands {text.count(mutation.old)} times in the file, not once: correct the table"
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*command, *(f"tests/{test}" for test in mutation.tests)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    path.write_text(text, encoding="utf-8")
    if ended.returncode == 1:
        return "caught by " + next(line for line in ended.stdout.splitlines() if line.startswith("FAILED")).split()[1]
    return "SURVIVED" if ended.returncode == 0 else f"the tests did not run:\n{ended.stdout[-2000:]}"


def main() -> int:
    """Return how many faults no test finds."""
    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "copy"
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        (folder / "assets").symlink_to(ROOT / "assets")
        for mutation in MUTATIONS:
            result = outcome(mutation, folder)
            missed += not result.startswith("caught")
            print(f"{mutation.file}: {mutation.old!r} -> {mutation.new!r}: {result}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
