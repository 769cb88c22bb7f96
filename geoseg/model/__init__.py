"""Models: specs to a loaded CLIP, dense encoding, upsampling."""
