"""Classification with Keras, on whichever backend: its recipe is read without importing Keras."""
