"""Types of the arrays that samplers, networks and objectives hand to each other.

Within one call a name stands for one size: B rows of a batch, each of shape S, which is H, W, C for
latents and horizon, A for chunks of actions. Tests check it at every call that is traced.
"""

from jaxtyping import Array, Float, Int, Key

Rows = Float[Array, "B *S"]
# Times, step sizes and other scalars of rows.
Scalars = Float[Array, "B"]
# Classes, or for a policy the O numbers of an observation.
Labels = Int[Array, "B"] | Float[Array, "B O"]
Keys = Key[Array, "B"]
# As Rows, with as many channels as all outputs of a network have together.
Outputs = Float[Array, "B ..."]

# N tokens of width D.
Tokens = Float[Array, "B N D"]
Vectors = Float[Array, "B D"]
