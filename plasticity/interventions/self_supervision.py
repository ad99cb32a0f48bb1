"""Interventions that train the network to predict its own observations, beside the agent's loss."""

from plasticity.interventions.base import Array, Batch, Context, Intervention, Rollout, State
from plasticity.networks import (
    BaseNetwork,
    Output,
    Params,
    masked_modeling_loss,
    with_masked_modeling,
)
from plasticity.struct import field

__all__ = ["MaskedModeling"]


class MaskedModeling(Intervention):
    """Predicts the features of masked tokens, as an auxiliary loss (Devlin et al. 2019).

    For encoders of tokens, as `Mosaic`; other networks are refused. At every gradient step a
    fraction of the valid tokens is chosen anew: 80 % of these are masked, 10 % have the features of
    another token, 10 % are left. The encoder gets a mask token, and a linear layer on the last
    block that predicts features. The loss gets the term coefficient * the mean squared error of the
    features of the chosen tokens. Positions are never masked. See
    `plasticity.networks.masked_modeling_loss`.

    30 % are chosen in training and 15 % in evaluation, as in MosaicBERT (Portes et al. 2023). BERT
    predicts words, with a cross-entropy and one more hidden layer. If policy and value have an
    encoder each, it is the policy's that learns. The probe `masked_modeling_loss` evaluates it, and
    `python -m experiments.pretrain` trains an encoder by this loss alone.

    Costs a second forward and backward pass of the encoder at every gradient step.

    Attributes:
      coefficient: the weight of the term. We know of no published value for PPO.
      rate: the fraction of the valid tokens that are chosen.
    """

    coefficient: float = field(1.0, ge=0)
    rate: float = field(0.3, ge=0, le=1)

    def network(self, network: BaseNetwork) -> BaseNetwork:
        return with_masked_modeling(network)

    def loss(
        self,
        state: State,
        params: Params,
        output: Output,
        minibatch: Batch,
        rollout: Rollout,
        context: Context,
    ) -> Array:
        assert output.tokens is not None
        loss = masked_modeling_loss(
            context.apply, params, output.tokens.tokens, self.rate, context.key
        )
        return self.coefficient * loss
