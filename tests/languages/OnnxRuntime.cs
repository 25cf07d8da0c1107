// The part of Microsoft.ML.OnnxRuntime that examples/csharp calls, without bodies: its C# package cannot be had here.
// Signatures are those of InferenceSession.shared.cs and OrtValue.shared.cs of ONNX Runtime 1.29.

using System;
using System.Collections.Generic;

namespace Microsoft.ML.OnnxRuntime
{
    public interface IDisposableReadOnlyCollection<T> : IReadOnlyList<T>, IDisposable { }

    public class RunOptions : IDisposable
    {
        public void Dispose() { }
    }

    public class OrtValue : IDisposable
    {
        public static OrtValue CreateTensorValueFromMemory<T>(T[] data, long[] shape) => throw null;
        public ReadOnlySpan<T> GetTensorDataAsSpan<T>() => throw null;
        public void Dispose() { }
    }

    public class InferenceSession : IDisposable
    {
        public InferenceSession(string modelPath) { }
        public IDisposableReadOnlyCollection<OrtValue> Run(
            RunOptions runOptions, IReadOnlyDictionary<string, OrtValue> inputs, IReadOnlyCollection<string> outputNames)
            => throw null;
        public void Dispose() { }
    }
}
