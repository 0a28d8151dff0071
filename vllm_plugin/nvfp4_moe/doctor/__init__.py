"""Commands that explain a setup or a wrong answer."""
