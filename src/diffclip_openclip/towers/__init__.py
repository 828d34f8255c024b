"""Define what the hosts build: timm image towers, transformers models of both towers, their configurations."""
