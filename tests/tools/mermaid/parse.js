// Reads flowcharts of Mermaid from stdin, a JSON list, and writes their nodes and edges, or the error of the parser.
import { readFileSync } from "node:fs";
import DOMPurify from "dompurify";
import mermaid from "mermaid";

// Without a browser, DOMPurify has no functions. Labels are not drawn here.
DOMPurify.addHook = () => {};
DOMPurify.sanitize = (text) => text;

const parsed = [];
for (const text of JSON.parse(readFileSync(0, "utf-8"))) {
  try {
    await mermaid.parse(text);
    const { db } = await mermaid.mermaidAPI.getDiagramFromText(text);
    const nodes = [...db.getVertices().values()].map((node) => [node.id, node.type, node.text]);
    const edges = db.getEdges().map((edge) => [edge.start, edge.end, edge.stroke, edge.text]);
    parsed.push({ nodes, edges });
  } catch (error) {
    parsed.push({ error: error.message });
  }
}
console.log(JSON.stringify(parsed));
