"""The optimizer of every network here: Muon for matrices, AdamW for everything else.

Muon (Jordan et al., 2024) makes the singular values of each update equal, so that rare directions, such as the shape of
one thing among a thousand, learn as fast as common ones; `training/README.md` has the gain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

MOMENTUM = 0.95
WEIGHT_DECAY = 0.01
ADAMW_SHARE = 0.5  # of Muon's learning rate


class MuonAdamW:
    """Steps every parameter of `model`, with the interface of a torch optimizer as far as training needs it.

    Muon takes the inner matrices, a convolution's kernel (O, I, k, k) as the matrix (O, I k k). Embeddings, biases,
    norms and the first and last convolution go to AdamW, as Muon's authors advise. The parameters must be contiguous,
    and must not be moved any more. `accelerate` need not prepare it: gradients are the same in all processes once
    `backward` returns, and bfloat16 has no scale to undo.

    rate: Muon's learning rate; AdamW has `ADAMW_SHARE` of it.
    word_share: the share of `rate` for token embeddings, which most steps don't touch; None treats them as the rest.
    """

    def __init__(self, model: nn.Module, rate: float, word_share: float | None = None):
        named = list(model.named_parameters())
        # The U-Net's `time_embedding` has inner matrices: an embedding is known by its class.
        outer = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        outer |= {
            id(p) for name, p in named if any(part in name for part in ("conv_in", "conv_out", "patch_embedding"))
        }
        self.matrices = [p for _, p in named if p.ndim >= 2 and id(p) not in outer]
        # Views share the memory: what Muon changes, the model sees.
        self._views = [nn.Parameter(p.data.view(len(p), -1)) for p in self.matrices]
        taken = {id(p) for p in self.matrices}
        words = [p for name, p in named if "token_embedding" in name and word_share is not None]
        taken |= {id(p) for p in words}
        groups: list[dict[str, Any]] = [{"params": [p for _, p in named if id(p) not in taken], "share": ADAMW_SHARE}]
        groups += [{"params": words, "share": word_share}] if words else []
        self._muon = torch.optim.Muon(
            self._views, weight_decay=WEIGHT_DECAY, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY, fused=True)
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step: `rate` for Muon, and a share of it for AdamW."""
        for group in self._muon.param_groups:
            group["lr"] = rate
        for group in self._adamw.param_groups:
            group["lr"] = group["share"] * rate

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for matrix in self.matrices:
            matrix.grad = None
        self._adamw.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Take one step along the gradients."""
        for matrix, view in zip(self.matrices, self._views, strict=True):
            assert view.data_ptr() == matrix.data_ptr(), "the model was moved after its optimizer had been made"
            view.grad = None if matrix.grad is None else matrix.grad.view_as(view)
        self._muon.step()
        self._adamw.step()

    def state_dict(self) -> dict[str, dict]:
        """Return the states of both optimizers."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Continue with the states of both optimizers."""
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])
