// A bundle's search in C++: each line of item indices on stdin, oldest first, becomes a line of recommended indices.
//
//     g++ -std=c++17 recommend.cpp -lonnxruntime -o recommend
//     echo "49 171 180" | ./recommend movies-bundle/recommend.onnx
//
// Indices count from 0 in `item_ids` and `titles` of the bundle's items.json, which an app reads with its JSON library.

#include <onnxruntime_cxx_api.h>

#include <array>
#include <iostream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using Items = std::vector<int64_t>;

/// The best k items that the history does not hold, best first. Throws Ort::Exception; an empty list means a history
/// without items or with an index out of range (the graph's output `status` tells them apart).
Items recommend(Ort::Session& session, Items history, int64_t k) {
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto tensor = [&](int64_t* data, std::vector<int64_t> shape) {
    return Ort::Value::CreateTensor<int64_t>(memory, data, shape.back(), shape.data(), shape.size());
  };
  const auto length = static_cast<int64_t>(history.size());
  const std::array inputs{tensor(history.data(), {1, length}), tensor(history.data(), {1, length}), tensor(&k, {1})};
  const std::array names{"history", "excluded", "k"};
  const std::array wanted{"items", "count"};
  const auto answers = session.Run({}, names.data(), inputs.data(), inputs.size(), wanted.data(), wanted.size());
  const int64_t* items = answers[0].GetTensorData<int64_t>();
  return {items, items + answers[1].GetTensorData<int64_t>()[0]};
}

int main(int count, char** arguments) try {
  if (count != 2) throw std::invalid_argument("usage: recommend BUNDLE/recommend.onnx < HISTORIES");
  Ort::Env environment;
  Ort::Session session(environment, arguments[1], Ort::SessionOptions{});
  for (std::string line; std::getline(std::cin, line); std::cout << '\n') {
    std::istringstream words(line);
    const Items history{std::istream_iterator<int64_t>(words), {}};
    for (int64_t item : recommend(session, history, 10)) std::cout << item << ' ';
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
