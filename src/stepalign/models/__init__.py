"""The model that is trained: loading, prompts, scoring and sampling."""
