"""The streaming engine: Qwen2.5-VL with a KV cache that slides. It knows torch and transformers, and nothing of ROS."""

from .budget import Budget, default_budget
from .cache_manager import KVCacheManager, Snapshot, StaleSnapshotError
from .decoding import Generation, json_grammar
from .device import DeviceLostError, is_device_lost
from .kv_cache_eviction import Chunk, EvictionConfig, KVCacheEvictor, TokenTypeTracker
from .qwen import ModelError, QwenModel
from .stream_qwen_model import Image, StreamQwenModel, StreamState, Text, Video
from .video_stream_inference import Appended, VideoStreamingInference

__all__ = [
    "Appended",
    "Budget",
    "Chunk",
    "DeviceLostError",
    "EvictionConfig",
    "Generation",
    "Image",
    "KVCacheEvictor",
    "KVCacheManager",
    "ModelError",
    "QwenModel",
    "Snapshot",
    "StaleSnapshotError",
    "StreamQwenModel",
    "StreamState",
    "Text",
    "TokenTypeTracker",
    "Video",
    "VideoStreamingInference",
    "default_budget",
    "is_device_lost",
    "json_grammar",
]
