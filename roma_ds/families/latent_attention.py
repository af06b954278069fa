"""What families with latent attention share."""

ROW_MODULES = (
    *("self_attn.q_proj", "self_attn.q_a_proj", "self_attn.q_b_proj", "self_attn.o_proj"),
    "mlp",
)
"""As `Family.row_modules`: queries come of one product, or of two around a norm."""
