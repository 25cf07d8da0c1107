// A bundle's search in C#: each line of item indices on stdin, oldest first, becomes a line of recommended indices.
//
//     dotnet new console && dotnet add package Microsoft.ML.OnnxRuntime      # then this file in place of Program.cs
//     echo "49 171 180" | dotnet run movies-bundle/recommend.onnx
//
// Indices count from 0 in `item_ids` and `titles` of the bundle's items.json, which an app reads with its JSON library.

using System;
using System.Collections.Generic;
using System.Linq;
using Microsoft.ML.OnnxRuntime;

public static class Recommender
{
    /// The best k items that the history does not hold, best first. An empty list means a history without items or with
    /// an index out of range (the graph's output "status" tells them apart).
    public static long[] Recommend(InferenceSession session, long[] history, long k)
    {
        using (var items = OrtValue.CreateTensorValueFromMemory(history, new long[] { 1, history.Length }))
        using (var wanted = OrtValue.CreateTensorValueFromMemory(new[] { k }, new long[] { 1 }))
        using (var options = new RunOptions())
        {
            var feeds = new Dictionary<string, OrtValue> { { "history", items }, { "excluded", items }, { "k", wanted } };
            using (var answers = session.Run(options, feeds, new[] { "items", "count" }))
            {
                int count = (int)answers[1].GetTensorDataAsSpan<long>()[0];
                return answers[0].GetTensorDataAsSpan<long>().Slice(0, count).ToArray();
            }
        }
    }

    public static void Main(string[] arguments)
    {
        using (var session = new InferenceSession(arguments[0]))
        {
            for (string line; (line = Console.ReadLine()) != null;)
            {
                var words = line.Split(new[] { ' ' }, StringSplitOptions.RemoveEmptyEntries);
                Console.WriteLine(string.Join(" ", Recommend(session, words.Select(long.Parse).ToArray(), 10)));
            }
        }
    }
}
