package appfile

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

var yamlLine = regexp.MustCompile(`^line ([0-9]+): `)

// parseYAML reads a document. Its problem, if any, is a *problem.
func parseYAML(b []byte) (*table, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		p := &problem{pos{1, 1}, strings.TrimPrefix(err.Error(), "yaml: ")}
		if m := yamlLine.FindStringSubmatch(p.text); m != nil {
			p.pos.line, _ = strconv.Atoi(m[1]) // digits, and few enough: the file is small
			p.text = strings.TrimPrefix(p.text, m[0])
		}
		p.text = "this is not YAML: " + p.text
		return nil, p
	}
	if len(doc.Content) == 0 {
		return newTable(pos{1, 1}), nil
	}
	v, err := yamlValue(doc.Content[0], 0)
	if err != nil {
		return nil, err
	}
	if v.table == nil {
		return nil, &problem{v.pos, "this is " + v.what() + ": write keys and values, such as app: web"}
	}
	return v.table, nil
}

func yamlValue(n *yaml.Node, depth int) (*value, error) {
	v := &value{pos: pos{n.Line, n.Column}, text: n.Value}
	if depth > maxDepth {
		return nil, &problem{v.pos, fmt.Sprintf("this lies over %d values deep", maxDepth)}
	}
	switch n.Kind {
	case yaml.AliasNode:
		return nil, &problem{v.pos, "an alias (*" + n.Value + ") is not read: write the value out"}
	case yaml.SequenceNode:
		v.kind = kindList
		for _, c := range n.Content {
			e, err := yamlValue(c, depth+1)
			if err != nil {
				return nil, err
			}
			v.list = append(v.list, e)
		}
	case yaml.MappingNode:
		return yamlTable(n, v, depth)
	default:
		yamlScalar(n, v)
	}
	return v, nil
}

func yamlTable(n *yaml.Node, v *value, depth int) (*value, error) {
	v.kind, v.table = kindTable, newTable(v.pos)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		at := pos{k.Line, k.Column}
		if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" {
			return nil, &problem{at, "a key is a plain word here"}
		}
		if _, twice := v.table.vals[k.Value]; twice {
			return nil, &problem{at, fmt.Sprintf("the key %q is given twice", k.Value)}
		}
		e, err := yamlValue(n.Content[i+1], depth+1)
		if err != nil {
			return nil, err
		}
		e.pos = at
		if e.table != nil {
			e.table.pos = at
		}
		v.table.set(k.Value, e)
	}
	return v, nil
}

func yamlScalar(n *yaml.Node, v *value) {
	switch n.ShortTag() {
	case "!!str":
		v.kind = kindString
	case "!!int":
		v.kind = kindInt
	case "!!float":
		v.kind = kindFloat
	case "!!bool":
		v.kind, v.text = kindBool, strings.ToLower(n.Value)
	case "!!null":
		v.text = "null"
	}
}
