// A bundle's search in Swift: each line of item indices on stdin, oldest first, becomes a line of recommended indices.
//
//     .package(url: "https://github.com/microsoft/onnxruntime-swift-package-manager", from: "1.20.0")
//
// Or with CocoaPods: pod 'onnxruntime-objc', and `import onnxruntime_objc`. Indices count from 0 in `item_ids` and
// `titles` of the bundle's items.json, which an app reads with JSONDecoder.

import Foundation
import OnnxRuntimeBindings

func tensor(_ values: [Int64], _ shape: [Int]) throws -> ORTValue {
    let data = values.withUnsafeBufferPointer { NSMutableData(data: Data(buffer: $0)) }
    return try ORTValue(tensorData: data, elementType: .int64, shape: shape.map { NSNumber(value: $0) })
}

func longs(_ value: ORTValue) throws -> [Int64] {
    try (value.tensorData() as Data).withUnsafeBytes { Array($0.bindMemory(to: Int64.self)) }
}

/// The best k items that the history does not hold, best first. An empty list means a history without items or with an
/// index out of range (the graph's output "status" tells them apart).
func recommend(_ session: ORTSession, _ history: [Int64], _ k: Int64) throws -> [Int64] {
    let items = try tensor(history, [1, history.count])
    let feeds = ["history": items, "excluded": items, "k": try tensor([k], [1])]
    let answer = try session.run(withInputs: feeds, outputNames: ["items", "count"], runOptions: nil)
    return Array(try longs(answer["items"]!).prefix(Int(try longs(answer["count"]!)[0])))
}

@main
struct Program {
    static func main() throws {
        let environment = try ORTEnv(loggingLevel: .warning)
        let session = try ORTSession(env: environment, modelPath: CommandLine.arguments[1], sessionOptions: nil)
        while let line = readLine() {
            let history = line.split(separator: " ").compactMap { Int64($0) }
            print(try recommend(session, history, 10).map(String.init).joined(separator: " "))
        }
    }
}
