"""Pure tensor functions under the methods: no models, no configuration, no global state.

Letters used in shapes and comments, here and in `vlmcompress.methods`:
    B  images in a batch
    N  visual tokens of one image or clip
    K  tokens kept or made
    H  attention heads
    D  features of a token
"""
