// Runs a template of Go's own text/template as Ollama does: what the tests compare ours with.
package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var in struct {
		Template, System string
		Messages         []message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Parse(in.Template))
	if err := parsed.Execute(os.Stdout, in); err != nil {
		panic(err)
	}
}
