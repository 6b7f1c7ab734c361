"""A trainer that records what its engine samples: ``python -m tests.fakes.counting_trainer FILE ARGUMENTS...``.

It is the real program; each call of the engine adds a line to FILE with the rollout and the sampled ids. Successive
processes of one run may append to the same file.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from searchrl.agent.types import Generation, Sampling
from services.trainer import command_line as trainer
from services.trainer.engines.torch_engine import TorchEngine


def count_into(path: Path) -> None:
    generate = TorchEngine.generate

    async def counted(self: TorchEngine, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation:
        generation = await generate(self, prompt_ids, sampling, rollout_id)
        with path.open("a") as file:
            file.write(json.dumps([rollout_id, list(generation.ids)]) + "\n")
        return generation

    TorchEngine.generate = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    count_into(Path(sys.argv[1]))
    trainer.main(sys.argv[2:])
