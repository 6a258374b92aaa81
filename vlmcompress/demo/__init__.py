"""A page to play with: a picture or a clip, a question, and what methods keep of it.

Only `page` and `launch` know gradio, which the extra `demo` installs.
"""
