"""A transformer as its Hugging Face `config.json` describes it.

    >>> from sim.inputs.document import read_value
    >>> from sim.inputs.names import find_entry
    >>> from sim.model.config import Model
    >>> read_value(find_entry("llama-2-70b", "models"), Model).num_hidden_layers
    80

Read `config` first (the keys of a config), then `blocks` (matrices, parameters, KV cache).
"""
