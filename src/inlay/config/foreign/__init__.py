"""Configs of LLaMA-Factory and Axolotl as configs of inlay: one file a trainer."""
