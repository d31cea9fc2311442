"""OpenVLA-OFT: two vision transformers, a projector and Llama-2, one parallel forward per chunk of action tokens.

`config` is all that a stage needs to describe one and imports nothing heavy; `model` is the network, `published` reads
and writes the published folders, `lora` trains adapters in place of the weights.
"""
