// A bundle's search in Java: each line of item indices on stdin, oldest first, becomes a line of recommended indices.
//
//     javac -cp onnxruntime.jar Recommend.java          # Maven: com.microsoft.onnxruntime:onnxruntime, for Android
//     echo "49 171 180" | java -cp onnxruntime.jar:. Recommend movies-bundle/recommend.onnx        # onnxruntime-android
//
// Indices count from 0 in `item_ids` and `titles` of the bundle's items.json, which an app reads with its JSON library.

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.LongBuffer;
import java.util.Arrays;
import java.util.Map;
import java.util.Scanner;
import java.util.Set;

public final class Recommend {
  private static final OrtEnvironment ENVIRONMENT = OrtEnvironment.getEnvironment();

  private static OnnxTensor tensor(long[] values, long... shape) throws OrtException {
    return OnnxTensor.createTensor(ENVIRONMENT, LongBuffer.wrap(values), shape);
  }

  /**
   * The best k items that the history does not hold, best first. An empty list means a history without items or with
   * an index out of range (the graph's output "status" tells them apart).
   */
  static long[] recommend(OrtSession session, long[] history, long k) throws OrtException {
    try (OnnxTensor items = tensor(history, 1, history.length);
        OnnxTensor wanted = tensor(new long[] {k}, 1);
        OrtSession.Result answer =
            session.run(Map.of("history", items, "excluded", items, "k", wanted), Set.of("items", "count"))) {
      long count = ((OnnxTensor) answer.get("count").get()).getLongBuffer().get(0);
      return Arrays.copyOf(((OnnxTensor) answer.get("items").get()).getLongBuffer().array(), (int) count);
    }
  }

  public static void main(String[] arguments) throws OrtException {
    try (OrtSession session = ENVIRONMENT.createSession(arguments[0])) {
      Scanner lines = new Scanner(System.in);
      while (lines.hasNextLine()) {
        long[] history = new Scanner(lines.nextLine()).tokens().mapToLong(Long::parseLong).toArray();
        Arrays.stream(recommend(session, history, 10)).forEach(item -> System.out.print(item + " "));
        System.out.println();
      }
    }
  }
}
