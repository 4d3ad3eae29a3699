"""Pure maths, tensors in and out: divergences, their fused form from hidden states, and policy-gradient losses."""
