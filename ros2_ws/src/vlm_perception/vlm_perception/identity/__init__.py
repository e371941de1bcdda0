"""Memory with identity: which entities the instructions name, which frames show them, and which to bring back.

`mentions` reads an instruction by rule, `extraction` what a model adds to that, `registry` gives each entity an id that
holds across instructions, `archive` keeps frames on disk, `bank` decides which frames are active and which instruction
needs which of them again. No ROS, no torch.
"""
