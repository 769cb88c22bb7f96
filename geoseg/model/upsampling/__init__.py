"""Upsamplers: from the patch grid to pixels, under the image's guidance."""
