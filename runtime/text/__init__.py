"""What turns people's input into ids and ids into text: tokenizers, chat templates, streaming."""
