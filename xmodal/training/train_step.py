"""One optimizer step of a rank: its rates, what of the student learns in it, and its micro-batches, there and back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from shards.batches import Batch
from xmodal.training.ema import decay_of_step
from xmodal.training.engine import frozen_backbone, restart_optimizer, set_ema_decay, set_learning_rate
from xmodal.training.features import Features, head_alone
from xmodal.training.mixup import mixed_losses
from xmodal.training.pictures import Pictures
from xmodal.training.preparation import Preparation
from xmodal.training.schedule import learning_rate, step_in_phase


class TrainStep:
    """Takes the steps of a run as it was prepared; in the first `frozen_steps`, the head alone learns."""

    def __init__(self, engine: Any, pictures: Pictures, prepared: Preparation) -> None:
        config = prepared.config
        self._engine, self._pictures, self._loss = engine, pictures, prepared.loss
        self._seed, self._mixup, self._optimizer = config.seed, config.mixup, config.optimizer
        self._schedule_steps, self._frozen_steps = prepared.schedule_steps, prepared.frozen_steps

    def take(
        self, step: int, micro_batches: Sequence[Batch], features: Features | None
    ) -> tuple[float, list[torch.Tensor]]:
        """Do step `step` (from 0): its learning rate, and the losses of each micro-batch's samples, `(n,)`.

        With `features` of the train split, the head alone is run on them, and the batches need no pixels.
        """
        # Mixup, drop path and dropout depend on (seed, step, rank) alone: a resumed run draws what it would have drawn.
        torch.manual_seed((self._seed * 1_000_003 + step) * 4096 + self._pictures.ranks.rank)
        rate = self._set_rates(step)
        with self._phase(step, has_features=features is not None):
            return rate, [self._forward_and_backward(batch, features) for batch in micro_batches]

    def _set_rates(self, step: int) -> float:
        rate = learning_rate(
            *step_in_phase(step, self._frozen_steps, self._schedule_steps),
            peak=self._optimizer.lr,
            final_share=self._optimizer.final_lr_share,
            warmup_share=self._optimizer.warmup_share,
        )
        set_learning_rate(self._engine, rate, head_only=step < self._frozen_steps)
        if self._optimizer.ema_decay:
            set_ema_decay(self._engine, decay_of_step(step, self._optimizer.ema_decay))
        return rate

    @contextmanager
    def _phase(self, step: int, *, has_features: bool) -> Iterator[None]:
        """What a step is done in; no checkpoint may be saved within it, since parts are frozen."""
        self._engine.train()
        if step == self._frozen_steps:
            restart_optimizer(self._engine)
        with (
            frozen_backbone(self._engine.module) if step < self._frozen_steps else nullcontext(),
            head_alone(self._engine.module) if has_features else nullcontext(),
        ):
            yield

    def _forward_and_backward(self, batch: Batch, features: Features | None) -> torch.Tensor:
        """One micro-batch; the engine steps its optimizer with the last of a step. Returns its samples' losses."""
        targets = batch.targets.to(self._engine.device)
        if features is not None:
            losses = self._loss(self._engine(features.draw(batch.rows).to(self._engine.device)), targets)
        elif self._mixup:
            losses = mixed_losses(self._engine, self._loss, self._pictures.pixels(batch), targets, self._mixup)
        else:
            losses = self._loss(self._engine(self._pictures.pixels(batch)), targets)
        self._engine.backward(losses.mean())
        self._engine.step()
        return losses.detach()
