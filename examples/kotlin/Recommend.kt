// A bundle's search in Kotlin: each line of item indices on stdin, oldest first, becomes a line of recommended indices.
//
//     implementation("com.microsoft.onnxruntime:onnxruntime-android:1.22.0")      // Gradle; onnxruntime outside Android
//
// Indices count from 0 in `item_ids` and `titles` of the bundle's items.json, which an app reads with its JSON library.

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.nio.LongBuffer

private val environment = OrtEnvironment.getEnvironment()

private fun tensor(values: LongArray, vararg shape: Long): OnnxTensor =
    OnnxTensor.createTensor(environment, LongBuffer.wrap(values), shape)

/**
 * The best k items that the history does not hold, best first. An empty list means a history without items or with an
 * index out of range (the graph's output "status" tells them apart).
 */
fun recommend(session: OrtSession, history: LongArray, k: Long): LongArray =
    tensor(history, 1, history.size.toLong()).use { items ->
        tensor(longArrayOf(k), 1).use { wanted ->
            val feeds = mapOf("history" to items, "excluded" to items, "k" to wanted)
            session.run(feeds, setOf("items", "count")).use { answer ->
                fun longs(name: String) = (answer[name].get() as OnnxTensor).longBuffer.array()
                longs("items").copyOf(longs("count")[0].toInt())
            }
        }
    }

fun main(arguments: Array<String>) {
    environment.createSession(arguments[0]).use { session ->
        for (line in generateSequence(::readlnOrNull)) {
            val history = line.split(" ").filter(String::isNotEmpty).map(String::toLong).toLongArray()
            println(recommend(session, history, 10).joinToString(" "))
        }
    }
}
