"""The web page: a few marked pictures in, masks out. Only serving it needs Gradio."""
