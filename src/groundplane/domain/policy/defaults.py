"""The built-in rules that are told as data, in the same form as an operator's, with their tests.

Rules that need more than one expression (suggestions, arithmetic in the message, the catalogue) are in `builtin`.
"""

DEFAULTS_NAME = "built-in"

DEFAULTS = r"""
policy: groundplane/policy/v1
rules:
  - id: owner
    over: spec
    require: spec.owner != ""
    why: Nothing runs without a person who answers for it.
    hint: set metadata.owner
    need: metadata.owner
    have: nothing
    tests:
      - {name: nobody, given: {spec: {owner: ""}}, expect: refuse}
      - {name: somebody, given: {spec: {owner: ana}}, expect: pass}

  - id: cost-center
    over: spec
    require: spec.cost_center != ""
    why: Every dollar is booked somewhere.
    hint: set metadata.cost_center
    need: metadata.cost_center
    have: nothing
    tests:
      - {given: {spec: {cost_center: ""}}, expect: refuse}
      - {given: {spec: {cost_center: research}}, expect: pass}

  - id: labels-required
    over: spec
    require: settings.required_labels.all(label, label in spec.labels && spec.labels[label] != "")
    why: What is not tagged can't be found, booked or cleaned up.
    hint: set them under metadata.labels
    need: "labels {settings.required_labels}"
    have: "{spec.labels}"
    tests:
      - {name: none asked for, given: {spec: {labels: {}}}, expect: pass}
      - name: one of two is missing
        given: {settings: {required_labels: [team, stage]}, spec: {labels: {team: vision}}}
        expect: refuse
      - name: an empty label is none
        given: {settings: {required_labels: [team]}, spec: {labels: {team: ""}}}
        expect: refuse
      - name: all there
        given: {settings: {required_labels: [team]}, spec: {labels: {team: vision}}}
        expect: pass

  - id: limits-set
    over: spec
    require: spec.cpus > 0.0 && spec.memory_bytes > 0 && spec.max_duration_hours > 0.0
    why: Work without limits takes its neighbours' share and never ends.
    hint: set resources.cpus, resources.memory and max_duration
    need: CPUs, memory and a longest duration above 0
    have: "{spec.cpus} CPUs, {spec.memory_bytes} bytes, {spec.max_duration_hours} h"
    tests:
      - {given: {spec: {memory_bytes: 0}}, expect: refuse}
      - {given: {spec: {max_duration_hours: 0}}, expect: refuse}
      - {given: {spec: {cpus: 0.5, memory_bytes: 1048576}}, expect: pass}

  - id: image-pinned
    over: spec
    when: size(spec.images) > 0
    require: >-
      spec.images.all(image, image.contains("@sha256:")
        || (image.matches(":[A-Za-z0-9_][A-Za-z0-9_.-]*$") && !image.endsWith(":latest")))
    why: What `latest` means changes overnight; nobody can say afterwards what ran.
    hint: name a version or a digest
    need: container images with a version
    have: "{spec.images.filter(image, !image.contains('@sha256:')
      && (image.endsWith(':latest') || !image.matches(':[A-Za-z0-9_][A-Za-z0-9_.-]*$')))}"
    tests:
      - {name: latest, given: {spec: {images: ["nvcr.io/nvidia/pytorch:latest"]}}, expect: refuse}
      - {name: no tag, given: {spec: {images: [pytorch/pytorch]}}, expect: refuse}
      - {name: a port is no tag, given: {spec: {images: ["registry.local:5000/train"]}}, expect: refuse}
      - {name: one of two, given: {spec: {images: ["a:1.2", "b:latest"]}}, expect: refuse}
      - {name: a version, given: {spec: {images: ["registry.local:5000/train:24.05-py3"]}}, expect: pass}
      - name: a digest
        given: {spec: {images: ["train@sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"]}}
        expect: pass
      - {name: no container, given: {spec: {images: []}}, expect: pass}

  - id: accelerator-counted
    over: spec
    when: spec.accelerator != ""
    require: spec.accelerators_per_node > 0
    why: A kind of accelerator without a number would run on CPU, slowly and silently.
    hint: set resources.accelerators, or remove resources.accelerator
    need: "a number of {spec.accelerator}"
    have: "resources.accelerators: 0"
    tests:
      - {given: {spec: {accelerator: h100, accelerators_per_node: 0}}, expect: refuse}
      - {given: {spec: {accelerator: h100, accelerators_per_node: 8}}, expect: pass}

  - id: data-clearance
    over: plan
    require: spec.classification_rank <= plan.clearance_rank
    why: Data goes only where it is cleared to go.
    hint: choose a pool cleared for it, or settings.pool_clearances in a policy file
    need: "a pool cleared for {spec.classification} data"
    have: "pool {plan.pool}, cleared for {plan.clearance}"
    tests:
      - name: confidential data on a pool for internal data
        given:
          spec: {classification: confidential, classification_rank: 2}
          plan: {clearance: internal, clearance_rank: 1}
        expect: refuse
      - name: public data anywhere
        given: {spec: {classification: public, classification_rank: 0}, plan: {clearance: public, clearance_rank: 0}}
        expect: pass

  - id: sku-allowed
    over: plan
    when: plan.has_offer && size(project.allowed_skus) > 0
    require: project.allowed_skus.exists(sku, sku == plan.node_type || sku == plan.accelerator)
    why: Each project has the hardware it is meant to use.
    hint: choose one of them, or ask for settings.allowed_skus in a policy file
    need: "one of {project.allowed_skus} for project {project.name}"
    have: "{plan.node_type}"
    tests:
      - {name: no list, given: {plan: {node_type: Standard_ND96asr_v4}}, expect: pass}
      - name: not in the list
        given: {plan: {node_type: Standard_ND96asr_v4}, project: {allowed_skus: [Standard_NC24ads_A100_v4]}}
        expect: refuse
      - name: by its accelerator
        given: {plan: {accelerator: a100-80gb}, project: {allowed_skus: [a100-80gb]}}
        expect: pass

  - id: approval-accelerators
    over: plan
    when: settings.approval_accelerators > 0
    require: plan.accelerators <= settings.approval_accelerators
    severity: approve
    why: Much hardware at once is decided by somebody who answers for it.
    hint: ask for approval, or plan with fewer accelerators
    need: "up to {settings.approval_accelerators} need no approval"
    have: "{plan.accelerators} accelerators"
    tests:
      - {name: four of four, given: {settings: {approval_accelerators: 4}, plan: {accelerators: 4}}, expect: pass}
      - {name: five of four, given: {settings: {approval_accelerators: 4}, plan: {accelerators: 5}}, expect: approve}
      - name: left to the projects
        given: {settings: {approval_accelerators: 0}, plan: {accelerators: 64}}
        expect: pass

  - id: approval-cost
    over: plan
    when: settings.approval_cost_usd > 0.0
    require: plan.worst_case_usd <= settings.approval_cost_usd
    severity: approve
    why: Much money at once is decided by somebody who answers for it.
    hint: ask for approval, or plan for less
    need: "up to ${settings.approval_cost_usd} need no approval"
    have: "${plan.worst_case_usd} in the worst case"
    tests:
      - {given: {settings: {approval_cost_usd: 500}, plan: {worst_case_usd: 500}}, expect: pass}
      - {given: {settings: {approval_cost_usd: 500}, plan: {worst_case_usd: 500.01}}, expect: approve}

  - id: price-not-zero
    over: plan
    when: plan.has_offer
    require: plan.price_usd_per_hour > 0.0
    severity: warn
    why: At a price of zero no budget holds anything back.
    hint: "set an hourly price: GROUND_LOCAL_PRICE for this machine"
    need: a price above $0 bounds the cost
    have: "{plan.pool}/{plan.node_type} costs $0/h"
    tests:
      - {given: {plan: {price_usd_per_hour: 0}}, expect: warn}
      - {given: {plan: {price_usd_per_hour: 0.1}}, expect: pass}

  - id: real-hardware
    over: plan
    require: "!plan.simulated"
    severity: warn
    why: What is simulated says so everywhere.
    hint: choose another pool for real work
    need: nothing of it is measured on real hardware
    have: "pool {plan.pool} is simulated"
    tests:
      - {given: {plan: {simulated: true}}, expect: warn}
      - {given: {plan: {simulated: false}}, expect: pass}

  - id: private-endpoints
    over: endpoint
    when: "!settings.allow_public"
    require: "!spec.public"
    why: This installation serves nothing beyond the private network.
    hint: set public false; settings.allow_public in a policy file decides
    need: a private endpoint
    have: "public: true"
    tests:
      - {name: not here, given: {settings: {allow_public: false}, spec: {public: true}}, expect: refuse}
      - {name: with an exposure where it is allowed, given: {spec: {public: true}}, expect: pass}
      - {name: private, given: {settings: {allow_public: false}, spec: {public: false}}, expect: pass}
"""
