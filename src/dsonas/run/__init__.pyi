from .choice_job import (
    ChoiceJob as ChoiceJob,
)
from .classify import (
    Prediction as Prediction,
    predict_images as predict_images,
)
from .compress_job import (
    CompressJob as CompressJob,
)
from .console import (
    Reporter as Reporter,
    readable_count as readable_count,
)
from .fitting import (
    final_latency as final_latency,
    fit_to_budget as fit_to_budget,
    run_measures as run_measures,
)
from .interrupts import (
    StopSignal as StopSignal,
)
from .network_files import (
    FinishedNetwork as FinishedNetwork,
    Shape as Shape,
)
from .own_space import (
    CHOICES_FILE as CHOICES_FILE,
    choices_from_json as choices_from_json,
)
from .pipeline import (
    Job as Job,
    check_fits as check_fits,
    evaluate_run as evaluate_run,
    place_network as place_network,
)
from .recipes import (
    read_settings as read_settings,
    recipe_names as recipe_names,
    recipe_path as recipe_path,
)
from .run_batches import (
    EVALUATION_BATCH as EVALUATION_BATCH,
    held_out_batches as held_out_batches,
    test_data as test_data,
)
from .run_config import (
    RunConfig as RunConfig,
    changed_settings as changed_settings,
    fitting_batch as fitting_batch,
    part_sizes as part_sizes,
    renamed as renamed,
    upgraded as upgraded,
)
from .runs import (
    COMPRESSED_FILE as COMPRESSED_FILE,
    JOBS_FILE as JOBS_FILE,
    Preprocessing as Preprocessing,
    RunError as RunError,
    RunFolder as RunFolder,
    compressed_from_json as compressed_from_json,
    load_chain as load_chain,
    versions as versions,
)
from .tracking import (
    Tracking as Tracking,
)
from .transferring import (
    transferred as transferred,
)
