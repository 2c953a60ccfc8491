"""Exports in the layouts that speech runtimes read: onnx-asr and sherpa-onnx."""
