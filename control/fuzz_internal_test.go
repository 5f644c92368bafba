package control

import (
	"encoding/json"
	"testing"

	"github.com/volant-edge/volant/api"
)

func FuzzCheckConfig(f *testing.F) {
	for _, s := range []string{
		`{"image":"sha256:00","config":{"env":{"A":"b"},"services":[{"protocol":"tcp","internal_port":80,"ports":[{"port":80}]}]}}`,
		`{"config":{"services":[{"protocol":"tcp","internal_port":1,"ports":[{"start_port":1,"end_port":65535}],"concurrency":{"soft_limit":9223372036854775807}}]}}`,
		`{"config":{"guest":{"cpus":-1},"stop_config":{"timeout":"-9h"},"restart":{"policy":"always"}},"scale":{"min":-1,"idle_timeout":"1ns"}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var in api.CreateRelease
		if json.Unmarshal(b, &in) != nil || checkConfig(&in.Config) != nil {
			return
		}
		ports := 0
		for i := range in.Config.Services {
			s := &in.Config.Services[i]
			if soft, hard := s.Limits(in.Config.Guest.WithDefaults().CPUs); soft < 1 || hard < soft {
				t.Errorf("limits %d and %d", soft, hard)
			}
			for _, p := range s.Ports {
				first, last := p.Range()
				ports += last - first + 1
			}
		}
		if ports > maxPorts {
			t.Errorf("%d ports", ports)
		}
	})
}
