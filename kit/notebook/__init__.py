"""What the notebook for Colab and Kaggle does. Imports the standard library alone until told to."""
