"""A transformer as its Hugging Face `config.json` describes it.

    >>> from sim.inputs.document import read_value
    >>> from sim.inputs.names import find_entry
    >>> from sim.model.transformer import Model
    >>> read_value(find_entry("llama-2-70b", "models"), Model).num_hidden_layers
    80

Read `transformer` first (blocks, parameters, KV cache), then `config_layers` (the meaning of a
config's keys for each layer).
"""
